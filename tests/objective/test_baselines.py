"""The two baselines against literal references, and the pictures against their definition."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import mpp
from mpp.objective.base import Sample
from mpp.objective.baselines import neighbour_colours
from mpp.objective.patches import patchify, unpatchify
from mpp.training.reconstruction import grid
from tests.support.reference import colour_class, downsized_labels, full_patch_labels, mean_color_labels

P, GRID = 4, 5
SIZE = P * GRID


def objective(target: object, fraction: float = 0.5) -> mpp.MaskedPatchPrediction:
    encoder = mpp.create_encoder("test_vit", image_size=SIZE, patch_size=P)
    return mpp.MaskedPatchPrediction(encoder, target=target, corruption=mpp.Corruption(fraction=fraction), seed=3)


def images(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 3, 3)).repeat(8, 2).repeat(8, 3)[:, :, :SIZE, :SIZE]
    return torch.from_numpy((coarse + rng.integers(-9, 9, coarse.shape)).clip(0, 255).astype(np.uint8))


def around(image: np.ndarray, hidden: set[int], place: int) -> np.ndarray | None:
    """Pixels `(3, n)` of the visible patches around `place`, of all visible ones if there are none around it."""
    row, column = divmod(place, GRID)
    near = [
        n for n in range(GRID**2)
        if n not in hidden and max(abs(n // GRID - row), abs(n % GRID - column)) == 1
    ]  # fmt: skip
    chosen = near or [n for n in range(GRID**2) if n not in hidden]
    pieces = [image[:, n // GRID * P :, n % GRID * P :][:, :P, :P].reshape(3, -1) for n in chosen]
    return np.concatenate(pieces, 1) if pieces else None


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.96, 1.0])
@pytest.mark.parametrize("bits", [1, 3])
def test_neighbour_colours_equal_a_loop_over_patches(fraction: float, bits: int):
    model = objective(mpp.MeanColor(bits=bits), fraction)
    pixels = images(6, seed=0)
    positions = model(pixels, torch.arange(6)).positions
    classes, colours = neighbour_colours(pixels, positions, P, bits)
    for b in range(6):
        hidden = set(positions[b].tolist())
        for k, place in enumerate(positions[b].tolist()):
            seen = around(pixels[b].numpy(), hidden, place)
            if seen is None:
                assert int(classes[b, k]) == 0
                continue
            assert int(classes[b, k]) == colour_class(seen[:, None], bits)
            assert colours[b, k].numpy() == pytest.approx(seen.astype(np.int64).mean(1), abs=1e-9)


@pytest.mark.parametrize("target", [mpp.MeanColor(bits=2), mpp.DownsizedPatch(cells=2, bits=1)], ids=lambda t: t.kind)
def test_colour_baselines_equal_counting_with_dictionaries(target):
    model = objective(target)
    train, validation = images(20, seed=1), images(10, seed=2)
    found = model.baselines(
        Sample([(train[:12], torch.arange(12)), (train[12:], torch.arange(12, 20))]),
        Sample([(validation, torch.arange(100, 110))]),
    )

    def observations(pixels: torch.Tensor, samples: torch.Tensor) -> list[tuple[int, int, int]]:
        positions = model(pixels, samples).positions
        if isinstance(target, mpp.MeanColor):
            labels = mean_color_labels(pixels.numpy(), P, target.bits)[..., None]
        else:
            labels = downsized_labels(pixels.numpy(), P, target.cells, target.bits)
        rows = []
        for b, places in enumerate(positions.tolist()):
            for place in places:
                seen = around(pixels[b].numpy(), set(places), place)
                assert seen is not None
                context = colour_class(seen[:, None], target.bits)
                rows += [(cell, context, int(label)) for cell, label in enumerate(labels[b, place])]
        return rows

    seen, held_out = observations(train, torch.arange(20)), observations(validation, torch.arange(100, 110))
    classes = 8**target.bits
    alone, together = Counter((cell, label) for cell, _, label in seen), Counter(seen)
    cells, contexts = Counter(cell for cell, _, _ in seen), Counter((cell, context) for cell, context, _ in seen)
    histogram = [-math.log((alone[c, y] + 1) / (cells[c] + classes)) for c, _, y in held_out]
    neighbours = [-math.log((together[c, x, y] + 1) / (contexts[c, x] + classes)) for c, x, y in held_out]
    assert found == pytest.approx({"histogram": np.mean(histogram), "neighbours": np.mean(neighbours)}, rel=1e-12)


def test_pixel_baselines_equal_their_definition():
    model = objective(mpp.FullPatch())
    train, validation = images(8, seed=1), images(4, seed=2)
    found = model.baselines(Sample([(train, torch.arange(8))]), Sample([(validation, torch.arange(50, 54))]))
    places = model(train, torch.arange(8)).positions.numpy()
    mean = np.take_along_axis(full_patch_labels(train.numpy(), P), places[..., None], 1).mean((0, 1))
    truth, errors, near = full_patch_labels(validation.numpy(), P), [], []
    for b, held in enumerate(model(validation, torch.arange(50, 54)).positions.tolist()):
        for place in held:
            seen = around(validation[b].numpy(), set(held), place)
            assert seen is not None
            errors.append(((truth[b, place] - mean) ** 2).mean())
            near.append(((truth[b, place].reshape(-1, 3) - seen.astype(np.int64).mean(1) / 255) ** 2).mean())
    assert found == pytest.approx({"histogram": np.mean(errors), "neighbours": np.mean(near)}, rel=1e-6)
    normalized = objective(mpp.FullPatch(normalize=True))
    seen, held_out = Sample([(train, torch.arange(8))]), Sample([(validation, torch.arange(4))])
    assert set(normalized.baselines(seen, held_out)) == {"histogram"}


def test_unpatchify_inverts_patchify():
    pixels = images(3, seed=5)
    assert torch.equal(unpatchify(patchify(pixels, P), GRID), pixels)


class Perfect(torch.nn.Module):
    """A head that knows the answer."""

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize(
    "target", [mpp.MeanColor(), mpp.DownsizedPatch(), mpp.FullPatch(), mpp.FullPatch(normalize=True)], ids=str
)
def test_a_perfect_prediction_is_drawn_as_the_image_in_the_target_s_own_way(target):
    model = objective(target)
    pixels, samples = images(2, seed=4), torch.arange(2)
    truth = model(pixels, samples)
    width = {"mean_color": 512, "downsized": 512}.get(target.kind)
    perfect = torch.nn.functional.one_hot(truth.labels, width).float() * 50 if width else truth.labels
    model.head = Perfect(perfect.flatten(2))
    with torch.no_grad():
        drawn = model.eval().picture(pixels, samples)
    original, shown, predicted = (patchify(drawn[title], P).numpy() for title in ("original", "seen", "predicted"))
    assert np.array_equal(original, patchify(pixels.float() / 255, P).numpy())
    for b in range(2):
        kinds = dict(zip(truth.positions[b].tolist(), truth.kinds[b].tolist(), strict=True))
        for n in range(GRID**2):
            if n not in kinds:
                assert np.array_equal(shown[b, n], original[b, n])
                assert np.array_equal(predicted[b, n], original[b, n])
                continue
            if kinds[n] == 0:
                assert np.isnan(shown[b, n]).all()
            if target.kind == "full_patch":
                assert predicted[b, n] == pytest.approx(original[b, n], abs=2e-6)
            elif target.kind == "downsized":  # 4 × 4 cells of one pixel each, in the middle of their bins
                assert predicted[b, n] == pytest.approx((np.floor(original[b, n] * 255 / 32) + 0.5) / 8)
            else:
                mean = np.floor((original[b, n] * 255).round().sum((0, 1)) * 8 / (256 * P * P))
                assert predicted[b, n] == pytest.approx(np.broadcast_to((mean + 0.5) / 8, (P, P, 3)))


def test_the_grid_shows_every_panel_unblurred():
    columns = [images(2, seed=s).float() / 255 for s in range(3)]
    picture = grid(columns, ("a", "b", "c"), panel=40)
    assert isinstance(picture, Image.Image)
    found = np.asarray(picture)
    for column in range(3):
        for row in range(2):
            wanted = (columns[column][row] * 255).round().byte().permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
            top, left = 20 + 6 + row * 46, 6 + column * 46
            assert np.array_equal(found[top : top + 40, left : left + 40], wanted)
