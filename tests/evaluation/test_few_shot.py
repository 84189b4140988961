"""Closed-form few-shot classification against the normal equations, brute force and scikit-learn."""

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

import mpp
from mpp.evaluation.few_shot import L2_GRID, Ridge, Score, shot_rows
from tests.support.labelled_features import BROKEN, blobs, broken

L2 = 2.0**10
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def fitted(features, labels, num_classes):
    """Of arrays or tensors of any type."""
    return Ridge(torch.as_tensor(features).double(), torch.as_tensor(labels).long(), num_classes)


def decision_values(shots, labels, num_classes, l2, rows):
    return fitted(shots, labels, num_classes).scores(torch.as_tensor(rows).double(), l2).numpy()


def leave_one_out(features, num_classes, shots, l2s):
    ridge = fitted(features, np.repeat(np.arange(num_classes), shots), num_classes)
    return [ridge.leave_one_out(shots, l2) for l2 in l2s]


def chosen_l2(features, num_classes, shots, l2s=L2_GRID):
    return fitted(features, np.repeat(np.arange(num_classes), shots), num_classes).best_l2(shots, l2s)


# references


def design(shots, rows, bias=True):
    """Standardised by mean and population deviation of the shots; the bias column is 100."""
    varying = [d for d in range(shots.shape[1]) if len(set(shots[:, d].tolist())) > 1]
    mean = np.array([sum(shots[:, d]) / len(shots) for d in varying])
    variance = np.array([sum((shots[:, d] - m) ** 2) / len(shots) for d, m in zip(varying, mean, strict=True)])
    columns = (rows[:, varying] - mean) / (np.sqrt(variance) + 1e-5)
    return np.column_stack([columns, np.full(len(rows), 100.0)]) if bias else columns


def signs(labels, num_classes):
    return np.where(np.asarray(labels)[:, None] == np.arange(num_classes), 1.0, -1.0)


def weights(x, y, l2):
    """Solution of the regularised normal equations."""
    return np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)


def expected_scores(shots, labels, num_classes, l2, rows, bias=True):
    x = design(shots, shots, bias)
    return design(shots, rows, bias) @ weights(x, signs(labels, num_classes), l2)


def expected_rows(labels, shots, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for c in sorted(set(labels.tolist())):
        of_class = np.array([i for i, label in enumerate(labels) if label == c])
        rows.append(rng.permutation(of_class)[:shots])
    return np.array(rows)


def expected_predictions(data, shots, seed, l2):
    rows = expected_rows(data.train_labels, shots, seed)
    labels = np.repeat(np.arange(len(rows)), shots)
    shot_features = data.train_features[rows.ravel()]
    return expected_scores(shot_features, labels, len(rows), l2, data.test_features).argmax(1)


def brute_force(features, num_classes, shots, l2):
    """Share of shots recognised by a classifier that saw neither them nor their fold."""
    x, labels = design(features, features), np.repeat(np.arange(num_classes), shots)
    y = signs(labels, num_classes)
    right = 0
    for j in range(shots):
        left_out = np.arange(num_classes) * shots + j
        rest = np.setdiff1d(np.arange(len(x)), left_out)
        right += sum((x[left_out] @ weights(x[rest], y[rest], l2)).argmax(1) == labels[left_out])
    return right / len(x)


def shot_set(num_classes, shots, width, noise, seed):
    """Features in class-major order."""
    data = blobs(num_classes, shots, width, noise, seed)
    return data.train_features[np.argsort(data.train_labels, kind="stable")]


# closed form

SHAPES = [(9, 40), (60, 7), (12, 12), (12, 11), (12, 13), (200, 3), (3, 200)]


def random_problem(rows, width, seed=0):
    """Shots with unequal classes, and test rows from elsewhere."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % 5 % 3)
    scales = np.exp(rng.normal(size=width))
    shots = rng.normal(size=(rows, width)) * scales + rng.normal(size=width)
    return shots, labels, 1.5 * rng.normal(size=(31, width)) * scales + 0.5


@pytest.mark.parametrize("l2", [1, L2, 2.0**17], ids=["1", "2^10", "2^17"])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_decision_values_solve_the_normal_equations(rows, width, l2):
    shots, labels, test = random_problem(rows, width)
    expected = expected_scores(shots, labels, 3, l2, test)
    scores = decision_values(shots, labels, 3, l2, test)
    assert (scores.dtype, scores.shape) == (np.float64, (31, 3))
    np.testing.assert_allclose(scores, expected, **EXACT)
    np.testing.assert_array_equal(scores.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("l2", [1, L2, 2.0**17], ids=["1", "2^10", "2^17"])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_decision_values_are_those_of_ridge_regression_in_scikit_learn(rows, width, l2):
    shots, labels, test = random_problem(rows, width, seed=1)
    ridge = SklearnRidge(alpha=l2, fit_intercept=False, solver="svd").fit(design(shots, shots), signs(labels, 3))
    scores = decision_values(shots, labels, 3, l2, test)
    np.testing.assert_allclose(scores, ridge.predict(design(shots, test)), **EXACT)


def test_weak_regularisation_stays_accurate():
    for rows, width in SHAPES:
        shots, labels, test = random_problem(rows, width, seed=2)
        x, l2 = design(shots, shots), 2.0**-10
        # least squares on rows stacked with √λ·I: the square root of the normal equations' condition
        stacked = np.vstack([x, np.sqrt(l2) * np.eye(x.shape[1])])
        aims = np.vstack([signs(labels, 3), np.zeros((x.shape[1], 3))])
        expected = design(shots, test) @ np.linalg.lstsq(stacked, aims)[0]
        np.testing.assert_allclose(decision_values(shots, labels, 3, l2, test), expected, rtol=1e-6, atol=1e-7)


def test_a_test_row_is_standardised_by_the_shots_whatever_its_company():
    shots, labels, test = random_problem(20, 6)
    ridge, test = fitted(shots, labels, 3), torch.from_numpy(test)
    together = ridge.scores(test, L2)
    for other in (torch.cat([ridge.scores(row[None], L2) for row in test]),
                  ridge.scores(torch.cat([test, 1000 + test]), L2)[: len(test)]):  # fmt: skip
        np.testing.assert_allclose(other, together, rtol=0, atol=1e-12)


def test_the_order_of_the_shots_does_not_matter():
    shots, labels, test = random_problem(20, 6)
    order = np.random.default_rng(3).permutation(20)
    other = decision_values(shots[order], labels[order], 3, L2, test)
    np.testing.assert_allclose(other, decision_values(shots, labels, 3, L2, test), **EXACT)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize(("rows", "width"), [(7, 40), (47, 5)])
def test_a_feature_that_is_constant_over_the_shots_changes_nothing_whatever_it_is_in_test(rows, width, value):
    shots, labels, test = random_problem(rows, width)
    constant = np.full((rows, 1), value)
    if value == 0.1:
        assert constant.std() > 0, "rounded, a constant has a deviation: it must be recognised by its values"
    anything = np.linspace(-1e15, 1e15, len(test))[:, None]
    wider = np.hstack([constant, shots, constant])
    scores = decision_values(wider, labels, 3, L2, np.hstack([anything, test, -anything]))
    np.testing.assert_allclose(scores, decision_values(shots, labels, 3, L2, test), **EXACT)


@pytest.mark.parametrize("spread", [1e-4, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize(("rows", "width"), [(7, 40), (47, 5)])
def test_a_feature_that_is_nearly_constant_is_kept_and_divided_by_its_deviation_and_a_hundred_thousandth(
    rows, width, spread
):
    shots, labels, test = random_problem(rows, width)
    rng = np.random.default_rng(4)
    shots = np.column_stack([shots, spread * rng.normal(size=rows)])
    test = np.column_stack([test, 1e-8 / spread * rng.normal(size=len(test))])
    expected = expected_scores(shots, labels, 3, L2, test)
    without = expected_scores(shots[:, :-1], labels, 3, L2, test[:, :-1])
    assert np.abs(expected - without).max() > 1e-4
    np.testing.assert_allclose(decision_values(shots, labels, 3, L2, test), expected, **EXACT)


def test_a_single_different_shot_keeps_a_feature():
    shots, labels, test = random_problem(20, 6)
    shots[:, 2] = 0.25
    shots[11, 2] = 0.75
    expected = expected_scores(shots, labels, 3, L2, test)
    np.testing.assert_allclose(decision_values(shots, labels, 3, L2, test), expected, **EXACT)


@pytest.mark.parametrize(("classes", "shots", "width"), [(4, 1, 9), (4, 5, 50), (4, 5, 6), (10, 2, 8), (2, 3, 5)])
def test_with_equal_shots_the_bias_adds_the_same_to_every_class_and_so_changes_no_prediction(classes, shots, width):
    data = blobs(classes, shots, width, noise=2.0, seed=5)
    scores = decision_values(data.train_features, data.train_labels, classes, L2, data.test_features)
    plain = expected_scores(data.train_features, data.train_labels, classes, L2, data.test_features, bias=False)
    rows = classes * shots
    offset = 100 * 100 * (2 * shots - rows) / (100**2 * rows + L2)
    np.testing.assert_allclose(scores, plain + offset, **EXACT)
    np.testing.assert_array_equal(scores.argmax(1), plain.argmax(1))


# the shots


@pytest.mark.parametrize("seed", [0, 1, 2, 11])
@pytest.mark.parametrize("shots", [1, 2, 5, 10])
def test_shots_are_the_first_of_a_permutation_of_each_class_in_class_order(shots, seed):
    labels = np.random.default_rng(6).permutation(np.repeat(np.arange(5), [10, 31, 12, 10, 17]))
    rows = shot_rows(labels, shots, seed)
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected_rows(labels, shots, seed))
    np.testing.assert_array_equal(labels[rows], np.repeat(np.arange(5)[:, None], shots, 1))
    assert len(set(rows.ravel().tolist())) == rows.size
    np.testing.assert_array_equal(shot_rows(torch.from_numpy(labels), shots, seed), rows)


def test_fewer_shots_are_the_first_of_more():
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(6), 25))
    sets = [shot_rows(labels, shots, seed=1) for shots in (1, 5, 10, 25)]
    for fewer, more in pairwise(sets):
        np.testing.assert_array_equal(more[:, : fewer.shape[1]], fewer)
    assert sorted(sets[-1].ravel().tolist()) == list(range(150)), "25 of 25"


def test_seeds_draw_different_shots():
    labels = np.repeat(np.arange(6), 25)
    drawn = [shot_rows(labels, 5, seed) for seed in (0, 1, 2)]
    assert all((a != b).any() for a, b in pairwise(drawn))
    np.testing.assert_array_equal(drawn[1], shot_rows(labels, 5, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
def test_the_type_of_the_labels_does_not_matter(dtype):
    data = blobs(4, 12, 8, noise=1.5, seed=8)
    np.testing.assert_array_equal(
        shot_rows(data.train_labels.astype(dtype), 3, 0), expected_rows(data.train_labels, 3, 0)
    )
    narrow = data._replace(train_labels=data.train_labels.astype(dtype), test_labels=data.test_labels.astype(dtype))
    assert mpp.few_shot(*narrow, shots=(1, 5)) == mpp.few_shot(*data, shots=(1, 5))


# leaving one of each class out

L2S = [2.0**k for k in (0, 10, -5, 15, 5, 20)]


@pytest.mark.parametrize("noise", [1.0, 2.0])
@pytest.mark.parametrize(("classes", "width"), [(4, 40), (4, 3), (2, 5), (7, 11)])
@pytest.mark.parametrize("shots", [2, 3, 5])
def test_leaving_one_shot_of_every_class_out_equals_brute_force(shots, classes, width, noise):
    for seed in range(5):
        features = shot_set(classes, shots, width, noise, seed)
        expected = [brute_force(features, classes, shots, l2) for l2 in L2S]
        np.testing.assert_allclose(leave_one_out(features, classes, shots, L2S), expected, rtol=0, atol=1e-12)


def test_leaving_one_out_equals_brute_force_where_features_are_constant():
    for seed in range(5):
        features = shot_set(4, 3, 12, 1.5, seed)
        features[:, 3] = 0.1  # constant over all shots
        features[1:, 7] = 2.0  # constant but for one shot: in one fold over all that is left
        features[:, 9] = np.maximum(features[:, 9] - np.median(features[:, 9]), 0)
        expected = [brute_force(features, 4, 3, l2) for l2 in L2S]
        np.testing.assert_allclose(leave_one_out(features, 4, 3, L2S), expected, rtol=0, atol=1e-12)


def test_the_best_l2_is_chosen_and_of_equal_ones_the_largest():
    chosen = set()
    for seed in range(20):
        for order in (L2S, L2S[::-1], sorted(L2S)):
            features = shot_set(4, 5, 12, 1.5, seed)
            accuracies = {l2: round(20 * brute_force(features, 4, 5, l2)) for l2 in order}
            expected = max(l2 for l2 in order if accuracies[l2] == max(accuracies.values()))
            assert chosen_l2(features, 4, 5, order) == expected
            chosen.add(expected)
    assert len(chosen) >= 3, "the data must leave a choice"


def test_where_every_l2_is_perfect_the_largest_is_chosen():
    features = shot_set(3, 4, 20, 0.01, 0)
    assert leave_one_out(features, 3, 4, [1.0, 64.0, 8.0]) == [1.0, 1.0, 1.0]
    assert chosen_l2(features, 3, 4, [1.0, 64.0, 8.0]) == 64


# end to end


@pytest.mark.parametrize("width", [6, 80])
def test_the_accuracies_are_those_of_an_independent_implementation(width):
    data = blobs(5, 30, width, noise=2.0, seed=9)
    result = mpp.few_shot(*data)
    assert isinstance(result, Mapping)
    assert list(result) == [1, 5, 10, 25]
    for shots, score in result.items():
        expected = [(expected_predictions(data, shots, seed, L2) == data.test_labels).mean() for seed in (0, 1, 2)]
        assert isinstance(score.per_seed, tuple)
        assert score.per_seed == pytest.approx(expected, rel=0, abs=1e-12)
        assert 0.2 < min(expected) < 0.99, "neither chance nor perfect, or the comparison says little"
        mean = sum(expected) / 3
        assert isinstance(score.mean, float)
        assert isinstance(score.std, float)
        assert score.mean == pytest.approx(mean, abs=1e-12)
        assert score.std == pytest.approx((sum((a - mean) ** 2 for a in expected) / 2) ** 0.5, abs=1e-12)


@pytest.mark.parametrize("l2", [2.0**-3, 1, L2, 2.0**18])
@pytest.mark.parametrize("shots", [1, 2, 10])
def test_every_single_prediction_is_that_of_an_independent_implementation(shots, l2):
    # sparse, as after a ReLU: many features are constant over the shots, but not over train or test
    data = blobs(4, 15, 30, noise=2.0, seed=10, test_rows=500)
    threshold = np.quantile(data.train_features, 0.8, axis=0)
    data = data._replace(
        train_features=np.maximum(data.train_features, threshold),
        test_features=np.maximum(data.test_features, threshold),
    )
    for seed in (0, 7):
        predicted = expected_predictions(data, shots, seed, l2)
        # whoever predicts the same everywhere is right everywhere
        same = mpp.few_shot(*data._replace(test_labels=predicted), shots=(shots,), seeds=(seed,), l2=l2)
        assert same[shots].per_seed == (1.0,)


def test_the_deviation_of_a_single_seed_is_zero():
    data = blobs(4, 10, 8, noise=2.0, seed=11)
    score = mpp.few_shot(*data, shots=(2,), seeds=(5,))[2]
    assert len(score.per_seed) == 1
    assert score.mean == score.per_seed[0]
    assert score.std == 0.0


def test_each_seed_and_each_number_of_shots_is_independent_of_the_others():
    data = blobs(4, 10, 8, noise=2.0, seed=12)
    together = mpp.few_shot(*data, shots=(1, 5, 10), seeds=(0, 3, 4))
    for shots in (10, 1, 5):
        alone = [mpp.few_shot(*data, shots=(shots,), seeds=(seed,))[shots].per_seed[0] for seed in (0, 3, 4)]
        assert together[shots].per_seed == tuple(alone)
    backwards = mpp.few_shot(*data, shots=[5, 1], seeds=[4, 0])
    assert backwards[5].per_seed == together[5].per_seed[::-2]


def test_few_shot_takes_tensors_and_leaves_its_arguments_alone():
    data = blobs(4, 10, 8, noise=2.0, seed=13)
    copies = [array.copy() for array in data]
    for l2 in (L2, "auto"):
        expected = mpp.few_shot(*data, shots=(1, 5), l2=l2)
        tensors = [torch.from_numpy(array.copy()) for array in data]
        assert mpp.few_shot(*tensors, shots=(1, 5), l2=l2) == expected
        for array, tensor, copy in zip(data, tensors, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
            np.testing.assert_array_equal(tensor.numpy(), copy)


@pytest.mark.parametrize(
    ("dtype", "offset"), [(torch.float32, 3000), (torch.float16, 20), (torch.bfloat16, 20)], ids=str
)
def test_features_of_less_precision_are_those_very_numbers_in_double_precision(dtype, offset):
    data = blobs(4, 10, 8, noise=2.0, seed=14)
    single = data._replace(
        train_features=torch.from_numpy(data.train_features + offset).to(dtype),
        test_features=torch.from_numpy(data.test_features + offset).to(dtype),
    )
    for shots in (1, 5):
        for seed in (0, 1, 2):
            double = single._replace(
                train_features=single.train_features.double().numpy(),
                test_features=single.test_features.double().numpy(),
            )
            predicted = expected_predictions(double, shots, seed, L2)
            asked = single._replace(test_labels=predicted)
            assert mpp.few_shot(*asked, shots=(shots,), seeds=(seed,))[shots].mean == 1.0


def test_double_precision_features_are_not_rounded_to_single_precision():
    data = blobs(4, 10, 8, noise=2.0, seed=20)
    far = data._replace(train_features=data.train_features + 1e8, test_features=data.test_features + 1e8)
    for l2 in (L2, "auto"):
        near_scores, far_scores = (mpp.few_shot(*each, shots=(1, 5), l2=l2) for each in (data, far))
        assert far_scores == near_scores


# the choice of l2


def test_the_grid_of_l2_is_positive_and_without_repetition():
    assert len(L2_GRID) == len(set(L2_GRID)) > 1
    assert min(L2_GRID) > 0


def test_auto_chooses_each_l2_on_the_shots_alone():
    chosen = set()
    for noise, data_seed in ((2.0, 15), (3.0, 16)):
        data = blobs(5, 12, 20, noise, data_seed)
        # test features of another world would change a choice that looks at them
        elsewhere = np.random.default_rng(17).normal(size=data.test_features.shape) * 50
        for test_features in (data.test_features, elsewhere):
            asked = data._replace(test_features=test_features)
            result = mpp.few_shot(*asked, shots=(2, 5, 10), seeds=(0, 1, 2), l2="auto")
            for shots in (2, 5, 10):
                expected = []
                for seed in (0, 1, 2):
                    features = data.train_features[expected_rows(data.train_labels, shots, seed).ravel()]
                    right = {l2: round(5 * shots * brute_force(features, 5, shots, l2)) for l2 in L2_GRID}
                    l2 = max(l2 for l2 in L2_GRID if right[l2] == max(right.values()))
                    assert chosen_l2(features, 5, shots, L2_GRID) == l2
                    predicted = expected_predictions(asked, shots, seed, l2)
                    expected.append((predicted == data.test_labels).mean())
                    chosen.add(l2)
                assert result[shots].per_seed == pytest.approx(expected, rel=0, abs=1e-12)
    assert len(chosen) > 1, "the data must leave a choice"


def test_auto_with_one_shot_is_the_fixed_l2():
    data = blobs(6, 12, 20, noise=2.0, seed=18, test_rows=1000)
    auto, fixed, weak, strong = (
        mpp.few_shot(*data, shots=(1,), l2=l2)[1].per_seed for l2 in ("auto", 2**10, 2.0**-10, 2.0**20)
    )
    assert auto == fixed
    assert auto != weak
    assert auto != strong
    for seed in (0, 1, 2):
        asked = data._replace(test_labels=expected_predictions(data, 1, seed, L2))
        assert mpp.few_shot(*asked, shots=(1,), seeds=(seed,), l2="auto")[1].mean == 1.0


# mistakes


def test_a_class_with_fewer_images_than_shots_is_named_with_both_numbers():
    labels = np.repeat(np.arange(9), 15)
    labels = labels[(labels != 7) | (np.cumsum(labels == 7) <= 11)]
    rng = np.random.default_rng(19)
    features, test = rng.normal(size=(len(labels), 4)), rng.normal(size=(20, 4))
    mpp.few_shot(features, labels, test, np.arange(20) % 9, shots=(1, 11))
    for attempt in (
        lambda: mpp.few_shot(features, labels, test, np.arange(20) % 9, shots=(1, 13)),
        lambda: shot_rows(labels, 13, 0),
    ):
        with pytest.raises(ValueError, match=r"\b7\b") as caught:
            attempt()
        for number in ("11", "13"):
            assert number in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_features_are_refused_with_one_clear_message(name):
    features, message = broken(name)
    with pytest.raises(ValueError, match=message) as caught:
        mpp.few_shot(*features, shots=(1, 5))
    assert "\n" not in str(caught.value)


def as_read_only(values):
    values.flags.writeable = False
    return values


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (lambda x: x[::-1][::-1], lambda y: y.astype(np.uint16)),
        (lambda x: x.astype(">f8"), lambda y: y.astype(np.uint64)),
        (lambda x: as_read_only(x.copy()), lambda y: as_read_only(y.copy())),
        (lambda x: [torch.from_numpy(row) for row in x], lambda y: y.tolist()),
        (lambda x: np.asfortranarray(x), lambda y: torch.from_numpy(y)),
    ],
)
def test_arrays_of_any_kind_are_taken(features, labels):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 10)
    x = rng.normal(size=(30, 6)) + y[:, None]
    expected = mpp.few_shot(x, y, x, y, shots=(1, 5), seeds=(0, 1))
    assert mpp.few_shot(features(x), labels(y), features(x), labels(y), shots=(1, 5), seeds=(0, 1)) == expected


def test_counts_may_be_arrays_or_one_number_and_each_is_taken_once():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 10)
    x = rng.normal(size=(30, 6)) + y[:, None]
    expected = mpp.few_shot(x, y, x, y, shots=(5,), seeds=(0, 1))
    assert mpp.few_shot(x, y, x, y, shots=np.array([5, 5]), seeds=np.arange(2)) == expected
    assert mpp.few_shot(x, y, x, y, shots=5, seeds=[0, 1, 1]) == expected
    for wrong in (
        {"shots": ()},
        {"shots": (1.5,)},
        {"seeds": (-1,)},
        {"l2": None},
        {"l2": math.inf},
        {"l2": True},
        {"shots": "5"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            mpp.few_shot(x, y, x, y, **{"shots": (5,), **wrong})
    with pytest.raises(ValueError, match="must be numbers"):
        mpp.few_shot(x, y.astype(str), x, y)


def test_a_score_is_shown_by_its_mean_and_deviation():
    shown = repr(Score((0.25, 0.5)))
    assert shown == "Score(mean=0.3750, std=0.1768, per_seed=(0.25, 0.5))"
