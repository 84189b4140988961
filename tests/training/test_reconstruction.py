"""Pictures of reconstructions: frames, hatch and legend on the drawn pixels, and the same picture from every input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mpp
from mpp.training.reconstruction import FRAMES, STRIPES, grid
from tests.support.reference import random_pixels

P, GRID = 4, 4
COLOURS = dict(zip(("masked", "swapped", "kept"), FRAMES, strict=False))


@pytest.fixture(scope="module")
def objective() -> mpp.MaskedPatchPrediction:
    torch.manual_seed(0)
    encoder = mpp.create_encoder("test_vit", image_size=P * GRID, patch_size=P)
    corruption = mpp.Corruption(fraction=0.6, mask=0.4, swap=0.3, keep=0.3)
    return mpp.MaskedPatchPrediction(encoder, mpp.MeanColor(), corruption)


def panel(picture: Image.Image, row: int, column: int) -> np.ndarray:
    """uint8 `(160, 160, 3)`: the panel of an image."""
    top, left = 24 + 6 + row * 166, 6 + column * 166
    return np.asarray(picture)[top : top + 160, left : left + 160]


def test_every_corrupted_patch_has_the_frame_of_its_kind_and_no_other_has_one(objective: mpp.MaskedPatchPrediction):
    pixels = torch.from_numpy(random_pixels(3, P * GRID).numpy() // 2 * 2)  # even: no pixel has a frame's colour
    prediction = objective(pixels, torch.arange(3))
    picture = mpp.reconstruct(objective, pixels.numpy())
    assert set(prediction.kinds.flatten().tolist()) == {0, 1, 2}
    side = 160 // GRID
    for b in range(3):
        kinds = dict(zip(prediction.positions[b].tolist(), prediction.kinds[b].tolist(), strict=True))
        for n in range(GRID**2):
            at = np.s_[n // GRID * side : (n // GRID + 1) * side, n % GRID * side : (n % GRID + 1) * side]
            original, seen, predicted = (panel(picture, b, column)[at] for column in range(3))
            drawn = pixels[b].permute(1, 2, 0).numpy()[n // GRID * P :, n % GRID * P :][:P, :P].repeat(10, 0)
            assert np.array_equal(original, drawn.repeat(10, 1)), "the original is not marked"
            if n not in kinds:
                assert np.array_equal(seen, original)
                assert np.array_equal(predicted, original)
                continue
            for shown in (seen, predicted):
                for edge in (shown[0], shown[-1], shown[:, 0], shown[:, -1]):
                    assert (edge == FRAMES[kinds[n]]).all()
            inside = seen[5:-5, 5:-5]
            hatched = {tuple(colour) for colour in inside.reshape(-1, 3).tolist()} == set(STRIPES)
            assert hatched == (kinds[n] == 0), "a hatch is where the mask is"
            if hatched:
                assert (inside[:-1, 1:] == inside[1:, :-1]).all(), "diagonal stripes"
                assert (inside[0, 1:] != inside[0, :-1]).any(1).sum() > 8, "finer than the enlarged pixels"
            elif kinds[n] == 2:
                assert np.array_equal(inside, original[5:-5, 5:-5])


def test_the_legend_has_a_square_of_every_kind(objective: mpp.MaskedPatchPrediction):
    pixels = random_pixels(1, P * GRID)
    legend = np.asarray(mpp.reconstruct(objective, pixels))[-28:].reshape(-1, 3).tolist()
    assert {tuple(colour) for colour in legend} >= set(COLOURS.values()) | set(STRIPES)


def test_without_marks_there_is_no_legend():
    assert grid([torch.zeros(2, 3, 16, 16)], ["a"]).height == 20 + 2 * 166 + 6


def test_paths_images_folder_and_arrays_give_the_same_picture(objective: mpp.MaskedPatchPrediction, tmp_path: Path):
    images = [Image.fromarray(image) for image in random_pixels(3, 24, seed=1).permute(0, 2, 3, 1).numpy()]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.iterdir())
    wanted = mpp.reconstruct(objective, paths)
    for given in (images, tmp_path, str(tmp_path), [str(path) for path in paths], np.stack([*map(np.asarray, images)])):
        assert mpp.reconstruct(objective, given).tobytes() == wanted.tobytes()


def test_the_seed_decides_what_is_corrupted(objective: mpp.MaskedPatchPrediction):
    pixels = random_pixels(2, P * GRID)
    first, again, other = (mpp.reconstruct(objective, pixels, seed=seed).tobytes() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_objective_keeps_its_mode(objective: mpp.MaskedPatchPrediction):
    objective.train()
    mpp.reconstruct(objective, random_pixels(1, P * GRID))
    assert objective.training
    objective.eval()


def test_what_predicts_no_pixels_is_refused(objective: mpp.MaskedPatchPrediction):
    from mpp.objective.classification import SupervisedClassification

    with pytest.raises(ValueError, match="SupervisedClassification predicts no pixels"):
        mpp.reconstruct(SupervisedClassification(objective.encoder, 3), random_pixels(1, P * GRID))
    with pytest.raises(ValueError, match="there are no images"):
        mpp.reconstruct(objective, [])
