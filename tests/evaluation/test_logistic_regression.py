"""The convex linear probe against scikit-learn's logistic regression, prediction by prediction."""

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mpp.data.label_subsets import dev_split
from mpp.evaluation.logistic_regression import GRID, Probe, _Regression, linear_probe
from tests.support.labelled_features import BROKEN, Features, blobs, broken

CS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
# Solvers that stop at gradients of the mean loss of 1e-6 and of 1e-10 differ by up to 9e-4 of the spread of the
# decision values on the hardest data here (those that stop at 1e-4: by 0.1, and in 1 % of the rows).
CLEAR = 2e-3


def reference(features, labels, c):
    """scikit-learn's own pipeline, run until it has converged."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=10_000))
    return probe.fit(features, labels)


def clear_predictions(model, features):
    """What is predicted, and where the two likeliest classes are so far apart that no solver can swap them."""
    values = model.decision_function(features)
    return model.predict(features), clear(values if values.ndim == 2 else np.column_stack([-values / 2, values / 2]))


def clear(values):
    highest = np.sort(values, axis=1)
    return highest[:, -1] - highest[:, -2] > CLEAR * (values - values.mean(0)).std()


def assert_same_predictions(data, c, predicted, is_clear):
    assert is_clear.mean() > 0.98
    asked = data._replace(test_features=data.test_features[is_clear], test_labels=predicted[is_clear])
    # whoever predicts the same everywhere is right everywhere
    probe = linear_probe(*asked, grid=(c,))
    assert probe.c == c
    assert probe.accuracy == 1.0


@pytest.mark.parametrize("c", CS)
@pytest.mark.parametrize(("classes", "per_class", "width", "noise"), [(4, 60, 10, 1.5), (3, 20, 90, 4.0)])
def test_every_clear_prediction_is_that_of_scikit_learn_on_all_of_train(classes, per_class, width, noise, c):
    data = blobs(classes, per_class, width, noise, seed=0, test_rows=1000)
    model = reference(data.train_features, data.train_labels, c)
    assert_same_predictions(data, c, *clear_predictions(model, data.test_features))


def test_every_clear_prediction_is_that_of_scikit_learn_where_classes_are_unequal():
    data = blobs(4, 100, 6, noise=2.0, seed=1, test_rows=1000)
    kept = np.flatnonzero((data.train_labels > 0) | (np.arange(400) % 12 == 0))
    data = data._replace(train_features=data.train_features[kept], train_labels=data.train_labels[kept])
    for c in (1e-3, 1.0):
        model = reference(data.train_features, data.train_labels, c)
        assert_same_predictions(data, c, *clear_predictions(model, data.test_features))


def test_two_classes_are_told_apart():
    # of two classes scikit-learn models only the difference, a softmax both: a factor of two in C lies between them
    data = blobs(2, 40, 6, noise=2.0, seed=2, test_rows=1000)
    kept = np.flatnonzero((data.train_labels > 0) | (np.arange(80) % 4 == 0))
    data = data._replace(train_features=data.train_features[kept], train_labels=data.train_labels[kept])
    for c in (1e-2, 1.0):
        readings = [reference(data.train_features, data.train_labels, each) for each in (c, 2 * c)]
        (one, clear_one), (other, clear_other) = (clear_predictions(r, data.test_features) for r in readings)
        assert_same_predictions(data, c, one, clear_one & clear_other & (one == other))


def test_the_penalty_is_half_the_squared_weights_without_the_intercept():
    # the objective itself, minimised by another solver: C·Σ loss + ½‖W‖²
    data = blobs(3, 40, 4, noise=1.5, seed=3, test_rows=500)
    kept = np.flatnonzero((data.train_labels > 0) | (np.arange(120) % 2 == 0))
    data = data._replace(train_features=data.train_features[kept], train_labels=data.train_labels[kept])
    mean, deviation = data.train_features.mean(0), data.train_features.std(0)
    x, test = ((f - mean) / deviation for f in (data.train_features, data.test_features))
    predictions = []
    for c in (0.01, 0.3):

        def objective(flat, c=c):
            weights, intercept = flat[:12].reshape(4, 3), flat[12:]
            losses = -log_softmax(x @ weights + intercept, axis=1)[np.arange(len(x)), data.train_labels]
            return c * losses.sum() + 0.5 * (weights**2).sum()

        flat = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-6}).x
        values = test @ flat[:12].reshape(4, 3) + flat[12:]
        predictions.append(values.argmax(1))
        assert set(predictions[-1]) == {0, 1, 2}
        assert_same_predictions(data, c, values.argmax(1), clear(values))
    assert (predictions[0] != predictions[1]).sum() >= 10, "C must matter"


def entangled(rows, width, seed):
    """Features as transformers have them, nearly in a plane, with labels that no plane divides without mistakes."""
    mixed = np.random.default_rng(30).normal(size=(width, width)) * np.geomspace(1, 1e-3, width)[:, None]
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width)) @ mixed
    hidden = np.linalg.solve(mixed.T, features.T).T[:, -3:]  # in the directions that hardly vary
    return features, (2 * hidden + rng.gumbel(size=(rows, 3))).argmax(1)


def by_newton(x, labels, c):
    """Weights `(D + 1, K)` of a softmax regression, by exact Newton steps on the whole Hessian."""
    rows, classes = np.column_stack([x, np.ones(len(x))]), labels.max() + 1
    penalty = np.repeat(np.r_[np.ones(x.shape[1]), 0], classes) / c
    flat = np.zeros(rows.shape[1] * classes)
    for _ in range(50):
        shown = rows @ flat.reshape(-1, classes)
        p = np.exp(shown - shown.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = (rows.T @ (p - np.eye(classes)[labels])).ravel() + penalty * flat
        spread = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None, :]
        hessian = np.einsum("nd,ne,nkl->dkel", rows, rows, spread, optimize=True).reshape(len(flat), len(flat))
        # equal intercepts more for all classes change nothing: the step without them
        step = np.linalg.lstsq(hessian + np.diag(penalty), gradient, rcond=1e-13)[0]
        flat = flat - step
    assert np.abs(gradient).max() < 1e-6
    return flat.reshape(-1, classes)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("c", [10.0, 1000.0])
def test_correlated_features_with_hardly_any_penalty_are_fitted_to_the_end(c):
    features, labels = entangled(600, 24, seed=31)
    test, answers = entangled(2000, 24, seed=32)
    mean, deviation = features.mean(0), features.std(0)
    x, shown = (features - mean) / deviation, (test - mean) / deviation
    values = np.column_stack([shown, np.ones(len(shown))]) @ by_newton(x, labels, c)
    assert linear_probe(features, labels, test, answers, grid=(c,)).converged
    data = Features(features, labels, test, answers)
    assert_same_predictions(data, c, values.argmax(1), clear(values))
    soon = LogisticRegression(C=c, tol=1e-6, max_iter=100).fit(x, labels)  # what a solver that gives up would say
    assert (soon.predict(shown) != values.argmax(1)).mean() > 0.002


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("width", [4, 100])
def test_the_gradient_is_that_of_the_mean_loss_by_finite_differences(classes, width):
    data = blobs(classes, 30, width, noise=2.0, seed=32)
    c = 0.3
    model = _Regression(torch.from_numpy(data.train_features), torch.from_numpy(data.train_labels))
    model.weights += torch.from_numpy(np.random.default_rng(33).normal(size=model.weights.shape)) / 10
    x = StandardScaler().fit_transform(data.train_features)
    shape = (classes, width + 1)

    def loss(flat):
        weights = flat.reshape(shape).T
        losses = -log_softmax(x @ weights[:-1] + weights[-1], axis=1)[np.arange(len(x)), data.train_labels]
        penalty = (weights[:-1] ** 2).sum() * (2 if classes == 2 else 1)
        return losses.mean() + 0.5 * penalty / (c * len(x))

    at = torch.cat([model.weights[:, :-1] @ model.axes.T, model.weights[:, -1:]], dim=1).numpy().ravel()
    found = approx_fprime(at, loss, 1e-7)
    assert np.abs(found).max() > 1e-3
    assert model.gradient(c) == pytest.approx(np.abs(found).max(), rel=1e-4)


def test_a_choice_at_an_end_of_the_grid_is_told():
    dev = {0.1: 0.5, 1.0: 0.6, 10.0: 0.7}
    found = [Probe(0.5, c, dev, converged=True, predicted=torch.empty(0)) for c in dev]
    assert [probe.grid_end for probe in found] == ["smallest", None, "largest"]
    single = Probe(0.5, 0.1, {}, converged=True, predicted=torch.empty(0))
    assert single.grid_end is None, "of a single C nothing is chosen"


def test_the_accuracy_is_that_of_scikit_learn_with_the_chosen_c():
    data = blobs(5, 50, 12, noise=2.0, seed=4, test_rows=500)
    probe = linear_probe(*data, grid=CS)
    predicted, is_clear = clear_predictions(
        reference(data.train_features, data.train_labels, probe.c), data.test_features
    )
    assert isinstance(probe.accuracy, float)
    # only a row that is not clear may be decided otherwise
    accuracy = (predicted == data.test_labels).mean()
    assert 0.3 < accuracy < 0.95
    assert abs(probe.accuracy - accuracy) <= (~is_clear).mean() + 1e-12
    asked = data._replace(test_features=data.test_features[is_clear], test_labels=predicted[is_clear])
    assert linear_probe(*asked, grid=CS).accuracy == 1.0


def dev_predictions(data, seed, grid):
    """For both readings of 'standardised by train' (what is trained on; all of train): right and clear by C."""
    train, dev = dev_split(data.train_labels, 0.1, seed)
    labels = data.train_labels
    for standardised_by in (train, np.arange(len(labels))):
        x = StandardScaler().fit(data.train_features[standardised_by]).transform(data.train_features)
        models = {c: LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(x[train], labels[train]) for c in grid}
        predictions = {c: clear_predictions(model, x[dev]) for c, model in models.items()}
        yield {c: (predicted == labels[dev], is_clear) for c, (predicted, is_clear) in predictions.items()}


def test_dev_accuracies_are_those_on_a_tenth_of_train_that_the_others_did_not_see():
    agrees = []
    curves = set()
    for seed in range(6):
        data = blobs(4, 50, 60, noise=4.0, seed=5 + seed, test_rows=100)
        probe = linear_probe(*data, grid=CS, seed=seed)
        assert len(probe.dev) > 1
        curves.add(tuple(probe.dev.values()))
        agrees.append(
            [
                all(abs(right[c][0].mean() - dev) <= (~right[c][1]).mean() + 1e-12 for c, dev in probe.dev.items())
                for right in dev_predictions(data, seed, CS)
            ]
        )
    assert len(curves) > 3
    assert np.all(agrees, axis=0).any(), "the same reading throughout"


@pytest.mark.parametrize("seed", range(6))
def test_every_c_of_the_grid_has_its_dev_accuracy_and_the_best_is_chosen(seed):
    data = blobs(4, 50, 60, noise=4.0, seed=5 + seed, test_rows=100)
    for grid in (CS, CS[::-1]):
        probe = linear_probe(*data, grid=grid, seed=seed)
        assert probe.dev[probe.c] == max(probe.dev.values())
        assert sorted(probe.dev) == sorted(CS)


def test_no_other_c_of_the_grid_is_better_on_dev_however_uneven_its_accuracies_are():
    data = blobs(6, 40, 60, noise=4.0, seed=24, test_rows=100)
    grid = tuple(10.0 ** (k / 2) for k in range(-8, 3))
    probe = linear_probe(*data, grid=grid)
    # counting only what is right for sure
    best = [
        max((right & is_clear).mean() for right, is_clear in each.values()) for each in dev_predictions(data, 0, grid)
    ]
    assert probe.dev[probe.c] == max(probe.dev.values())
    assert probe.dev[probe.c] >= min(best) - 1e-12


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_with_patience_the_grid_ends_after_so_many_that_are_no_better(seed, patience):
    data = blobs(4, 50, 60, noise=4.0, seed=5 + seed, test_rows=100)
    grid = tuple(10.0**power for power in range(-6, 3))
    whole = list(linear_probe(*data, grid=grid, seed=seed).dev.items())
    probe = linear_probe(*data, grid=grid[::-1], seed=seed, patience=patience)
    best, ended = 0.0, len(whole)
    since = 0
    for number, (_, accuracy) in enumerate(whole, 1):
        since = 0 if accuracy > best else since + 1
        best = max(best, accuracy)
        if since == patience:
            ended = number
            break
    assert ended < len(whole) or patience > 1, "these data must not try the whole grid"
    assert list(probe.dev.items()) == whole[:ended]
    assert probe.dev[probe.c] == max(probe.dev.values())


def test_the_seed_draws_the_held_out_rows():
    data = blobs(4, 50, 60, noise=4.0, seed=6, test_rows=100)
    devs = [linear_probe(*data, grid=CS, seed=seed).dev for seed in (0, 0, 1, 2)]
    assert devs[0] == devs[1]
    assert devs[0] != devs[2] or devs[0] != devs[3]
    assert linear_probe(*data, grid=CS).dev == devs[0], "the default seed is 0"


def test_test_never_influences_the_choice():
    data = blobs(4, 50, 60, noise=4.0, seed=7, test_rows=100)
    expected = linear_probe(*data, grid=CS)
    rng = np.random.default_rng(8)
    for other in (
        data._replace(test_features=1000 * rng.normal(size=data.test_features.shape)),
        data._replace(test_labels=rng.permutation(data.test_labels)),
        data._replace(test_features=data.test_features[:7], test_labels=data.test_labels[:7]),
    ):
        probe = linear_probe(*other, grid=CS)
        assert probe.c == expected.c
        assert probe.dev == expected.dev


def test_scale_and_offset_of_a_feature_do_not_matter():
    data = blobs(4, 40, 8, noise=2.0, seed=9, test_rows=500)
    predicted, is_clear = clear_predictions(reference(data.train_features, data.train_labels, 0.01), data.test_features)
    rng = np.random.default_rng(10)
    scale, offset = np.exp(4 * rng.normal(size=8)), 100 * rng.normal(size=8)
    moved = data._replace(
        train_features=data.train_features * scale + offset, test_features=data.test_features * scale + offset
    )
    assert_same_predictions(moved, 0.01, predicted, is_clear)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_constant_feature_changes_nothing(value):
    data = blobs(4, 37, 8, noise=2.0, seed=11, test_rows=500)
    constant = np.full((148, 1), value)
    if value == 0.1:
        assert constant.std() > 0, "rounded, a constant has a deviation: it must be recognised by its values"
    predicted, is_clear = clear_predictions(reference(data.train_features, data.train_labels, 0.1), data.test_features)
    for in_test in (value, value + 5):
        wider = data._replace(
            train_features=np.hstack([data.train_features, constant]),
            test_features=np.hstack([data.test_features, np.full((500, 1), in_test)]),
        )
        assert_same_predictions(wider, 0.1, predicted, is_clear)


def test_the_default_grid_is_logarithmic():
    assert len(GRID) > 2
    assert min(GRID) > 0
    steps = np.diff(np.log(sorted(GRID)))
    assert steps.min() > 0
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_the_default_grid_is_searched():
    data = blobs(3, 30, 5, noise=1.5, seed=12)
    probe = linear_probe(*data)
    assert sorted(probe.dev) == sorted(GRID)
    assert probe.dev[probe.c] == max(probe.dev.values())


def test_the_probe_takes_tensors_and_leaves_its_arguments_alone():
    data = blobs(4, 30, 8, noise=2.0, seed=13)
    copies = [array.copy() for array in data]
    expected = linear_probe(*data, grid=CS)
    tensors = [torch.from_numpy(array.copy()) for array in data]
    probe = linear_probe(*tensors, grid=CS)
    assert (probe.accuracy, probe.c, probe.dev) == (expected.accuracy, expected.c, expected.dev)
    for array, tensor, copy in zip(data, tensors, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(tensor.numpy(), copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_features_of_less_precision_are_taken_as_they_are(dtype):
    data = blobs(4, 40, 8, noise=2.0, seed=14, test_rows=500)
    train, test = (torch.from_numpy(f).to(dtype) for f in (data.train_features, data.test_features))
    model = reference(train.double().numpy(), data.train_labels, 0.1)
    predicted, is_clear = clear_predictions(model, test.double().numpy())
    assert_same_predictions(data._replace(train_features=train, test_features=test), 0.1, predicted, is_clear)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_features_are_refused_with_one_clear_message(name):
    features, message = broken(name)
    with pytest.raises(ValueError, match=message) as caught:
        linear_probe(*features, grid=(0.1, 1.0))
    assert "\n" not in str(caught.value)
