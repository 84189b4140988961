"""Attention distance and rollout against plain NumPy, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpp


def random_attention(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.exp(np.random.default_rng(seed).normal(size=shape))
    return values / values.sum(-1, keepdims=True)


def distances(rows: int, columns: int, patch_size: int) -> np.ndarray:
    places = [(r, c) for r in range(rows) for c in range(columns)]
    return np.array([[patch_size * np.hypot(a[0] - b[0], a[1] - b[1]) for b in places] for a in places])


def test_uniform_attention_reaches_the_mean_distance_and_identity_none():
    uniform, identity = np.full((3, 2, 16, 16), 1 / 16), np.broadcast_to(np.eye(16), (3, 2, 16, 16)).copy()
    expected = np.full((3, 2), distances(4, 4, 8).mean())
    np.testing.assert_allclose(mpp.attention_distance(uniform, 8).numpy(), expected, rtol=1e-12)
    assert (mpp.attention_distance(identity, 8) == 0).all()


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7)])
def test_distance_is_that_of_a_plain_sum(grid):
    attention = random_attention(5, 2, 3, grid[0] * grid[1], grid[0] * grid[1])
    found = mpp.attention_distance(attention, 16, grid=grid).numpy()
    table = distances(*grid, 16)
    for layer in range(2):
        for head in range(3):
            each = [(attention[i, layer, head] * table).sum(1).mean() for i in range(5)]
            assert found[layer, head] == pytest.approx(np.mean(each), rel=1e-12)
    one = mpp.attention_distance(attention[0], 16, grid=grid)
    assert one.shape == (2, 3)


def test_rows_from_which_prefix_tokens_were_removed_are_renormalised_if_asked():
    attention = random_attention(2, 2, 10, 10)[..., 1:, 1:]
    renormalised = attention / attention.sum(-1, keepdims=True)
    found = mpp.attention_distance(attention, 4, renormalize=True)
    np.testing.assert_allclose(found.numpy(), mpp.attention_distance(renormalised, 4).numpy(), rtol=1e-12)
    assert (found > mpp.attention_distance(attention, 4)).all()


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_rollout_is_a_product_of_matrices(prefix):
    attention = random_attention(4, 2, 9 + prefix, 9 + prefix, seed=prefix)
    product = np.eye(9 + prefix)
    for layer in attention:
        product = (0.5 * layer.mean(0) + 0.5 * np.eye(9 + prefix)) @ product
    found = mpp.attention_rollout(attention, prefix)
    np.testing.assert_allclose(found.mean.numpy(), product[prefix:, prefix:].mean(0), rtol=1e-12)
    if prefix:
        assert found.token is not None
        np.testing.assert_allclose(found.token.numpy(), product[0, prefix:], rtol=1e-12)
    else:
        assert found.token is None


def test_rollout_of_a_batch_is_that_of_each_image():
    attention = torch.from_numpy(random_attention(3, 4, 2, 5, 5))
    batch = mpp.attention_rollout(attention)
    for image, alone in enumerate(map(mpp.attention_rollout, attention)):
        assert batch.token is not None
        torch.testing.assert_close(batch.token[image], alone.token, rtol=1e-12, atol=0)
        torch.testing.assert_close(batch.mean[image], alone.mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mpp.attention_distance(np.full((1, 1, 6, 6), 1 / 6), 4), "no square"),
        (lambda: mpp.attention_distance(np.full((1, 1, 6, 6), 1 / 6), 4, grid=(2, 2)), "2 × 2 patches"),
        (lambda: mpp.attention_distance(np.ones((1, 1, 4, 4)), 4), "after the softmax"),
        (lambda: mpp.attention_distance(np.full((1, 1, 4, 4), -1.0), 4), "after the softmax"),
        (lambda: mpp.attention_distance(np.zeros((1, 1, 4, 4)), 4, renormalize=True), "sums to 0"),
        (lambda: mpp.attention_distance(np.eye(4), 4), "found \\(4, 4\\)"),
        (lambda: mpp.attention_rollout(np.full((1, 1, 2, 2), 0.5), 2), "no patches"),
        (lambda: mpp.attention_rollout(np.full((1, 1, 2, 3), 0.1)), "found \\(1, 1, 2, 3\\)"),
    ],
)
def test_what_is_no_attention_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
