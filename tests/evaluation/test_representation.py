"""Effective rank, CKA, similarities and filters against NumPy, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpp.evaluation.representation import effective_rank, filters, linear_cka, patch_similarity, position_similarity


def features(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_effective_rank_is_that_of_numpy_and_knows_how_many_directions_there_are():
    rows = features(300, 12) * np.arange(1, 13)
    values = np.linalg.svd(rows, compute_uv=False)
    share = values / values.sum() + 1e-7
    assert effective_rank(rows) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-10)
    orthogonal = np.linalg.qr(features(64, 8))[0]
    assert effective_rank(orthogonal) == pytest.approx(8, rel=1e-5)
    assert effective_rank(np.outer(np.arange(1, 50), np.ones(8))) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(("n", "d", "e"), [(200, 6, 9), (10, 40, 30)])
def test_cka_is_that_of_numpy_whatever_the_rotation_and_the_scale(n, d, e):
    x, y = features(n, d), features(n, e, 1) + 0.3
    y[:, :4] += x[:, :4]
    left, right = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(right.T @ left) ** 2 / (np.linalg.norm(left.T @ left) * np.linalg.norm(right.T @ right))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-10)
    assert linear_cka(x, x) == pytest.approx(1, rel=1e-12)
    turned = 3 * y @ np.linalg.qr(features(e, e, 2))[0] + 5
    assert linear_cka(x, turned) == pytest.approx(expected, rel=1e-9)


def test_patch_similarity_is_the_mean_over_pairs():
    tokens = features(4 * 7, 5).reshape(4, 7, 5)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    pairs = [unit[i, a] @ unit[i, b] for i in range(4) for a in range(7) for b in range(7) if a != b]
    assert patch_similarity(tokens) == pytest.approx(np.mean(pairs), rel=1e-10)
    collapsed = np.broadcast_to(tokens[:, :1], tokens.shape)
    assert patch_similarity(collapsed.copy()) == pytest.approx(1, rel=1e-12)


def test_position_similarity_is_a_matrix_of_cosines():
    rows = features(9, 4)
    found = position_similarity(rows).numpy()
    expected = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows] for a in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_filters_are_principal_components_between_0_and_1():
    weights = features(50, 3 * 4 * 4).reshape(50, 3, 4, 4)
    found = filters(torch.from_numpy(weights), 5).numpy()
    flat = weights.reshape(50, -1)
    vectors = np.linalg.eigh(np.cov(flat.T))[1][:, ::-1].T[:5]
    for picture, vector in zip(found.reshape(5, -1), vectors, strict=True):
        assert (picture.min(), picture.max()) == (0, 1)
        assert abs(np.corrcoef(picture, vector)[0, 1]) == pytest.approx(1, rel=1e-8)
    assert filters(weights[:2], 28).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_rank(np.zeros((4, 2))), "all 0"),
        (lambda: effective_rank(np.full((4, 2), np.nan)), "finite"),
        (lambda: linear_cka(np.ones((4, 2)), np.eye(4)), "the same for every image"),
        (lambda: linear_cka(np.eye(4), np.eye(5)), "4 and 5 rows"),
        (lambda: patch_similarity(np.ones((2, 1, 3))), "two patches"),
        (lambda: filters(np.ones((2, 3))), "4 dimensions"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
