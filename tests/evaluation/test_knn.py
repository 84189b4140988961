"""Weighted nearest neighbours against scikit-learn's, prediction by prediction."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mpp.evaluation.knn import nearest_neighbours
from tests.support.labelled_features import BROKEN, Features, blobs, broken


def expected_predictions(data: Features, k: int, temperature: float = 0.07) -> np.ndarray:
    def weigh(distances):
        # exp(similarity / temperature), divided by the nearest one's for every query: no overflow, same winner
        return np.exp((distances.min(1, keepdims=True) - distances) / temperature)

    knn = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute", weights=weigh)
    return knn.fit(data.train_features, data.train_labels).predict(data.test_features)


def centred(classes, per_class, width, noise, seed, test_rows=400):
    """Blobs around the origin, so that directions differ."""
    data = blobs(classes, per_class, width, noise, seed, test_rows)
    mean = data.train_features.mean(0)
    return data._replace(train_features=data.train_features - mean, test_features=data.test_features - mean)


@pytest.mark.parametrize("width", [3, 40])
def test_the_accuracies_are_those_of_scikit_learn(width):
    data = centred(5, 60, width, noise=1.5, seed=0)
    result = nearest_neighbours(*data)
    assert isinstance(result, dict)
    assert list(result) == [10, 20, 100, 200]
    for k, accuracy in result.items():
        assert isinstance(accuracy, float)
        expected = (expected_predictions(data, k) == data.test_labels).mean()
        assert 0.2 < expected < 1
        assert accuracy == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.07, 1.0])
@pytest.mark.parametrize("k", [1, 2, 7, 20, 119, 120])
def test_every_single_prediction_is_that_of_scikit_learn(k, temperature):
    data = centred(4, 30, 8, noise=2.0, seed=1)
    predicted = expected_predictions(data, k, temperature)
    if k > 2 and temperature > 0.05:
        assert (predicted != expected_predictions(data, 1)).mean() > 0.05, "the neighbours must have a say"
    # whoever predicts the same everywhere is right everywhere
    result = nearest_neighbours(*data._replace(test_labels=predicted), k=(k,), temperature=temperature)
    assert result == {k: 1.0}


def test_votes_are_weighted_by_the_exponential_of_the_similarity():
    # class 0: one neighbour at similarity 1; class 1: two at similarity s; the two win iff 2·exp((s−1)/t) > 1
    for temperature in (0.07, 0.5):
        limit = 1 + temperature * np.log(0.5)
        for similarity, winner in ((limit - 1e-3, 0), (limit + 1e-3, 1)):
            sine = np.sqrt(1 - similarity**2)
            train = np.array(
                [[2.0, 0, 0], [similarity, sine, 0], [3 * similarity, 0, 3 * sine], [-1, 0, 0], [-1, 0, 0]]
            )
            labels = np.array([0, 1, 1, 0, 0])
            test = np.array([[0.5, 0, 0]])
            result = nearest_neighbours(train, labels, test, np.array([winner]), k=(3,), temperature=temperature)
            assert result == {3: 1.0}


def test_the_length_of_a_feature_vector_does_not_matter():
    data = centred(4, 30, 8, noise=2.0, seed=2)
    rng = np.random.default_rng(3)
    train, test = (f * np.exp(3 * rng.normal(size=(len(f), 1))) for f in (data.train_features, data.test_features))
    for k in (1, 10, 50):
        predicted = expected_predictions(data, k)
        assert nearest_neighbours(train, data.train_labels, test, predicted, k=(k,)) == {k: 1.0}


def test_unequal_classes_and_thousands_of_queries():
    data = centred(3, 400, 5, noise=1.0, seed=4, test_rows=5000)
    kept = np.flatnonzero((data.train_labels != 2) | (np.arange(1200) % 20 == 0))
    data = data._replace(train_features=data.train_features[kept], train_labels=data.train_labels[kept])
    for k in (5, 200):
        asked = data._replace(test_labels=expected_predictions(data, k))
        assert nearest_neighbours(*asked, k=(k,)) == {k: 1.0}


def test_each_k_is_independent_of_the_others_and_of_their_order():
    data = centred(4, 30, 8, noise=2.0, seed=5)
    together = nearest_neighbours(*data, k=(50, 1, 10))
    assert set(together) == {50, 1, 10}
    for k in (1, 10, 50):
        assert nearest_neighbours(*data, k=[k])[k] == together[k]
    assert len(set(together.values())) == 3


def test_neighbours_take_tensors_and_leave_their_arguments_alone():
    data = centred(4, 30, 8, noise=2.0, seed=6)
    copies = [array.copy() for array in data]
    expected = nearest_neighbours(*data, k=(1, 20))
    tensors = [torch.from_numpy(array.copy()) for array in data]
    assert nearest_neighbours(*tensors, k=(1, 20)) == expected
    for array, tensor, copy in zip(data, tensors, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(tensor.numpy(), copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_features_of_less_precision_are_taken_as_they_are(dtype):
    # 300 columns: similarities of rounded features still differ from one another
    data = centred(4, 30, 300, noise=12.0, seed=7)
    tensors = [torch.from_numpy(f).to(dtype) for f in (data.train_features, data.test_features)]
    rounded = data._replace(train_features=tensors[0].double().numpy(), test_features=tensors[1].double().numpy())
    for k in (1, 20):
        predicted = torch.from_numpy(expected_predictions(rounded, k))
        labels = torch.from_numpy(data.train_labels)
        assert nearest_neighbours(tensors[0], labels, tensors[1], predicted, k=(k,)) == {k: 1.0}


def test_more_neighbours_than_train_rows_are_refused_with_both_numbers():
    data = centred(3, 15, 4, noise=1.0, seed=8)
    assert set(nearest_neighbours(*data, k=(45,))) == {45}
    with pytest.raises(ValueError, match=r"(?s)\b46\b.*\b45\b|\b45\b.*\b46\b"):
        nearest_neighbours(*data, k=(10, 46))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_features_are_refused_with_one_clear_message(name):
    features, message = broken(name)
    with pytest.raises(ValueError, match=message) as caught:
        nearest_neighbours(*features, k=(1, 10))
    assert "\n" not in str(caught.value)


def test_centring_subtracts_the_mean_of_train_from_both():
    data = blobs(4, 40, 6, 2.0, 5)
    shifted = data._replace(train_features=data.train_features + 50, test_features=data.test_features + 50)
    mean = shifted.train_features.mean(0)
    by_hand = shifted._replace(train_features=shifted.train_features - mean, test_features=shifted.test_features - mean)
    expected = nearest_neighbours(*by_hand, k=(1, 5, 20))
    assert nearest_neighbours(*shifted, k=(1, 5, 20), centre=True) == pytest.approx(expected, abs=0.011)
    assert nearest_neighbours(*shifted, k=(1, 5, 20)) != pytest.approx(expected, abs=0.011)
