"""Every target against a literal NumPy reference: all values, all bin edges, all patch sizes."""

import numpy as np
import pytest
import torch

import mpp
from mpp.objective.patches import patchify, take
from tests.support.reference import (
    at,
    downsized_labels,
    full_patch_labels,
    mean_color_labels,
    normalized_as_in_mae,
    random_pixels,
)

PATCHES = [4, 8, 14, 16]
GRID = 4
EVERY_PATCH = 0.999  # of 16 patches: floor(15.984 + 1/2) = 16


@pytest.fixture(scope="module", params=PATCHES, ids=lambda p: f"P{p}")
def encoder(request):
    torch.manual_seed(0)
    return request.param, mpp.create_encoder("test_vit", image_size=GRID * request.param, patch_size=request.param)


def predict(encoder, target, images):
    objective = mpp.MaskedPatchPrediction(encoder, target=target, corruption=mpp.Corruption(fraction=EVERY_PATCH))
    with torch.no_grad():
        prediction = objective(torch.from_numpy(images), samples=torch.arange(len(images)))
    assert prediction.positions.tolist() == [list(range(GRID**2))] * len(images)
    return prediction


def from_patches(rows: list[np.ndarray], patch: int) -> np.ndarray:
    """Images of 4×4 patches from single patches `(3, patch, patch)`, the last one repeated to fill."""
    rows = rows + [rows[-1]] * (-len(rows) % GRID**2)
    grids = np.stack(rows).reshape(-1, GRID, GRID, 3, patch, patch)
    return np.ascontiguousarray(grids.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, GRID * patch, GRID * patch))


def constant_images(patch: int) -> np.ndarray:
    """Each of the 256 values in each channel, the three channels never in step."""
    colours = [(v, 255 - v, (7 * v + 3) % 256) for v in range(256)]
    rows = [np.broadcast_to(np.array(c, np.uint8)[:, None, None], (3, patch, patch)) for c in colours]
    return from_patches(rows, patch)


def edge_images(patch: int, bits: int) -> np.ndarray:
    """Patches whose channel sums lie exactly on a bin edge, one below it and one above it."""
    rng = np.random.default_rng(patch * 10 + bits)
    rows = []
    for edge in range(256 // 2**bits, 256, 256 // 2**bits):
        for channel in range(3):
            for change in (-1, 0, 1):
                pixels = np.full((3, patch, patch), edge)
                y, x = rng.integers(0, patch, 2)
                pixels[channel, y, x] += change
                rows.append(pixels.astype(np.uint8))
    return from_patches(rows, patch)


def noisy_edge_images(patch: int, bits: int) -> np.ndarray:
    """Pixels within one of a bin edge, so that cells of every shape land on both sides."""
    rng = np.random.default_rng(patch * 100 + bits)
    edges = rng.choice(np.arange(256 // 2**bits, 256, 256 // 2**bits), (8, 3, GRID * patch, GRID * patch))
    blocks = edges[:, :, ::patch, ::patch].repeat(patch, 2).repeat(patch, 3)
    return (blocks + rng.integers(-1, 2, blocks.shape)).astype(np.uint8)


IMAGES = {
    "every value": lambda patch, bits: constant_images(patch),
    "bin edges": edge_images,
    "around bin edges": noisy_edge_images,
    "noise": lambda patch, bits: random_pixels(4, GRID * patch, bits).numpy(),
}


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", IMAGES)
def test_mean_color_equals_the_integer_reference(encoder, kind, bits):
    patch, model = encoder
    images = IMAGES[kind](patch, bits)
    prediction = predict(model, mpp.MeanColor(bits=bits), images)
    assert not prediction.labels.is_floating_point()
    np.testing.assert_array_equal(prediction.labels.numpy(), mean_color_labels(images, patch, bits))
    assert prediction.logits.shape == (*prediction.positions.shape, 8**bits)


@pytest.mark.parametrize("bits", [1, 3, 4])
@pytest.mark.parametrize("kind", IMAGES)
def test_downsized_equals_the_integer_reference(encoder, kind, bits):
    patch, model = encoder
    images = IMAGES[kind](patch, bits)
    prediction = predict(model, mpp.DownsizedPatch(cells=4, bits=bits), images)
    assert not prediction.labels.is_floating_point()
    np.testing.assert_array_equal(prediction.labels.numpy(), downsized_labels(images, patch, 4, bits))
    assert prediction.logits.shape == (*prediction.positions.shape, 16, 8**bits)


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 6, 7])
def test_cells_have_the_edges_of_adaptive_pooling_whatever_their_number(encoder, cells):
    patch, model = encoder
    if cells > patch:
        pytest.skip("more cells than pixels: refused, tested below")
    for images in (noisy_edge_images(patch, 3), random_pixels(2, GRID * patch).numpy()):
        prediction = predict(model, mpp.DownsizedPatch(cells=cells, bits=3), images)
        np.testing.assert_array_equal(prediction.labels.numpy(), downsized_labels(images, patch, cells, 3))


def test_one_cell_is_the_mean_color(encoder):
    patch, model = encoder
    images = edge_images(patch, 3)
    one_cell = predict(model, mpp.DownsizedPatch(cells=1, bits=3), images)
    assert torch.equal(one_cell.labels[..., 0], predict(model, mpp.MeanColor(bits=3), images).labels)


def test_cells_of_one_pixel_are_the_pixels_bins():
    encoder = mpp.create_encoder("test_vit", image_size=16, patch_size=4)
    images = constant_images(4)
    labels = predict(encoder, mpp.DownsizedPatch(cells=4, bits=3), images).labels.numpy()
    r, g, b = (labels // 64, labels // 8 % 8, labels % 8)
    values = np.arange(256)
    for bins, channel in ((r, values), (g, 255 - values), (b, (7 * values + 3) % 256)):
        np.testing.assert_array_equal(bins.reshape(256, 16), np.repeat(channel[:, None] >> 5, 16, axis=1))


def test_the_first_channel_is_the_most_significant():
    encoder = mpp.create_encoder("test_vit", image_size=16, patch_size=4)
    images = np.zeros((3, 3, 16, 16), np.uint8)
    images[[0, 1, 2], [0, 1, 2]] = 255
    labels = predict(encoder, mpp.MeanColor(bits=3), images).labels
    assert labels[:, 0].tolist() == [7 * 64, 7 * 8, 7]


def test_full_patch_is_ordered_row_column_channel_in_zero_to_one(encoder):
    patch, model = encoder
    for images in (constant_images(patch), random_pixels(2, GRID * patch).numpy()):
        labels = predict(model, mpp.FullPatch(), images).labels
        assert labels.dtype == torch.float32
        assert labels.shape == (len(images), GRID**2, 3 * patch**2)
        expected = full_patch_labels(images, patch).astype(np.float32)
        np.testing.assert_array_max_ulp(labels.numpy(), expected, maxulp=1)
        assert labels.max() == 1
        assert labels.min() == 0


def test_normalized_full_patch_is_that_of_mae(encoder):
    patch, model = encoder
    images = random_pixels(2, GRID * patch).numpy()
    images[0, :, :patch, :patch] = 77  # no variance at all
    labels = predict(model, mpp.FullPatch(normalize=True), images).labels.double().numpy()
    expected = normalized_as_in_mae(full_patch_labels(images, patch))
    np.testing.assert_allclose(labels[:, 1:], expected[:, 1:], rtol=0, atol=2e-5)
    assert np.abs(labels[0, 0]).max() < 1e-3, "a patch of one colour has the mean as its only value"


def test_labels_are_those_of_the_positions_when_half_the_patches_are_corrupted(encoder):
    patch, model = encoder
    images = random_pixels(6, GRID * patch)
    for target, expected in (
        (mpp.MeanColor(bits=3), mean_color_labels(images.numpy(), patch, 3)),
        (mpp.DownsizedPatch(cells=4, bits=3), downsized_labels(images.numpy(), patch, 4, 3)),
    ):
        prediction = mpp.MaskedPatchPrediction(model, target=target, corruption=mpp.Corruption())(images)
        np.testing.assert_array_equal(prediction.labels.numpy(), at(expected, prediction.positions))


def test_labels_do_not_depend_on_memory_layout():
    encoder = mpp.create_encoder("test_vit", image_size=16, patch_size=4)
    images = random_pixels(3, 16)
    transposed = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    cut = torch.zeros(3, 3, 16, 32, dtype=torch.uint8)
    cut[..., ::2] = images
    for target in (mpp.MeanColor(), mpp.DownsizedPatch(), mpp.FullPatch()):
        objective = mpp.MaskedPatchPrediction(encoder, target=target, corruption=mpp.Corruption())
        expected, *others = [objective(x, samples=torch.arange(3)).labels for x in (images, transposed, cut[..., ::2])]
        assert all(torch.equal(expected, other) for other in others)


def test_the_patch_of_a_hybrid_is_image_over_grid():
    # 8×8 patches of a stem that reduces 4-fold: 32 pixels, whatever the name says
    encoder = mpp.create_encoder("vit_tiny_r_s16_p8_224", image_size=128)
    images = random_pixels(2, 128).numpy()
    images[:, :, :32, :32] //= 4
    mean_color = predict(encoder, mpp.MeanColor(), images)
    np.testing.assert_array_equal(mean_color.labels.numpy(), mean_color_labels(images, 32, 3))
    full = predict(encoder, mpp.FullPatch(), images)
    assert full.logits.shape == (2, 16, 3 * 32 * 32)
    np.testing.assert_array_max_ulp(full.labels.numpy(), full_patch_labels(images, 32).astype(np.float32), maxulp=1)


@pytest.mark.parametrize("bits", [0, 5, -1])
@pytest.mark.parametrize("target", ["MeanColor", "DownsizedPatch"])
def test_bits_outside_one_to_four_are_refused(target, bits):
    with pytest.raises(ValueError, match=str(bits)):
        getattr(mpp, target)(bits=bits)


def test_more_cells_than_pixels_a_side_are_refused_with_both_numbers():
    encoder = mpp.create_encoder("test_vit", image_size=16, patch_size=4)
    with pytest.raises(ValueError, match=r"(?s)\b5\b.*\b4\b|\b4\b.*\b5\b"):
        mpp.MaskedPatchPrediction(encoder, target=mpp.DownsizedPatch(cells=5), corruption=mpp.Corruption())


def test_no_cells_are_refused():
    with pytest.raises(ValueError, match="0"):
        mpp.DownsizedPatch(cells=0)


@pytest.mark.parametrize("patch", [4, 12, 16])
@pytest.mark.parametrize(
    "target", [mpp.MeanColor(), mpp.DownsizedPatch(cells=3), mpp.DownsizedPatch(), mpp.FullPatch()]
)
def test_labels_from_the_image_are_those_of_its_patches(patch, target):
    pixels = random_pixels(3, 4 * patch)
    positions = torch.stack([torch.randperm(16)[:5] for _ in range(3)])
    for images in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        expected = target.labels(take(patchify(images, patch), positions))
        assert torch.equal(target.labels_at(images, positions, patch), expected)
