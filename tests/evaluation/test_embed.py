"""`mpp.features` against timm's own forward pass and the evaluation's reader, from every kind of input."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

import mpp
from mpp.encoder.backbone import Backbone
from mpp.evaluation.features import EncoderReader, FeatureLayer
from tests.support.reference import random_pixels

SIZE, COUNT = 16, 5


@pytest.fixture(scope="module")
def encoder() -> Backbone:
    torch.manual_seed(0)
    return mpp.create_encoder("vit_tiny_patch16_224", image_size=SIZE, patch_size=4, embed_dim=24, depth=3, num_heads=2)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Larger than the encoder's images: uint8 `(5, 3, 24, 20)`."""
    return random_pixels(COUNT, 24, seed=3)[..., :20].contiguous()


def pil(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]


def test_every_kind_of_input_gives_the_same_bits(encoder: Backbone, pixels: torch.Tensor, tmp_path: Path):
    folder = tmp_path / "photos"
    for number, image in enumerate(pil(pixels)):  # in folders whose order is that of the images
        (folder / f"{number // 2}").mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number // 2}" / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    paths = sorted(folder.rglob("*.png"))
    table = datasets.Dataset.from_dict({"image": pil(pixels)}, features=datasets.Features({"image": datasets.Image()}))
    wanted = mpp.features(encoder, paths, progress=False)
    assert wanted.dtype == np.float32
    assert wanted.shape == (COUNT, 24)
    assert len(np.unique(wanted, axis=0)) == COUNT
    last = pixels.permute(0, 2, 3, 1)
    for given in (
        [str(path) for path in paths], iter(paths), pil(pixels), folder, str(folder), table, pixels, pixels.numpy(),
        last, last.numpy(), list(pixels), list(last.numpy()),
    ):  # fmt: skip
        assert mpp.features(encoder, given, progress=False).tobytes() == wanted.tobytes()


def test_they_are_those_of_timm_on_the_saved_encoder(encoder: Backbone, pixels: torch.Tensor, tmp_path: Path):
    mpp.save_encoder(encoder, str(tmp_path / "saved"))
    network = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    crops = F.center_crop(F.resize(pixels, [SIZE], antialias=True), [SIZE, SIZE])
    with torch.no_grad():
        wanted = network((crops.float() / 255 - 0.5) / 0.5).numpy()
    assert np.array_equal(mpp.features(encoder, pixels, pool=None, progress=False), wanted)
    assert np.array_equal(mpp.features(tmp_path / "saved", pixels, pool=None, progress=False), wanted)
    assert np.array_equal(
        mpp.features(str(tmp_path / "saved"), pixels, pool=None, batch_size=2, progress=False), wanted
    )


def test_the_saved_folder_is_what_a_run_exports(pretrained: Path, tmp_path: Path):
    mpp.save_encoder(mpp.load_encoder(pretrained), tmp_path / "again")
    one, other = tmp_path / "again", pretrained / "encoder"
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("layer", [None, 1, 2, 3])
@pytest.mark.parametrize("pool", ["avg", "token", "both"])
def test_layer_and_pool_are_those_of_the_evaluation(encoder: Backbone, layer: int | None, pool: str):
    pixels = random_pixels(COUNT, SIZE)
    asked = FeatureLayer(layer or 3, pool)
    with torch.no_grad():
        wanted = EncoderReader(encoder.eval()).read(pixels, [asked])[asked].numpy()
    assert np.array_equal(mpp.features(encoder, pixels, layer=layer, pool=pool, progress=False), wanted)
    assert wanted.shape[1] == (48 if pool == "both" else 24)


def test_the_encoder_keeps_its_mode_and_has_no_gradient(encoder: Backbone):
    encoder.train()
    mpp.features(encoder, random_pixels(2, SIZE), progress=False)
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    encoder.eval()


def test_a_network_without_patches_has_its_own_feature():
    from mpp.encoder.create import create_backbone

    network = create_backbone("test_resnet", image_size=32)
    found = mpp.features(network, random_pixels(2, 32), progress=False)
    assert found.shape == (2, network.width)
    with pytest.raises(ValueError, match="test_resnet has no blocks of patches; leave layer out"):
        mpp.features(network, random_pixels(2, 32), layer=1)


def test_mistakes_are_named(encoder: Backbone, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    image = random_pixels(1, SIZE)
    for given, options, words in (
        ([], {}, "there are no images"),
        (tmp_path / "nowhere", {}, "nowhere does not exist"),
        (tmp_path, {}, "broken.png"),
        (image.float(), {}, "pixels must be uint8, from 0 to 255; found float32"),
        (image[:, :2], {}, r"pixels must be \(n, h, w, 3\) or \(n, 3, h, w\); found"),
        (pil(image)[0], {}, "a single PIL image; give a list of them"),
        ([3], {}, "found a int; give a path"),
        (image, {"layer": 4}, "layer 4: vit_tiny_patch16_224 has the blocks 1 to 3"),
        (image, {"layer": 0}, "layer 0"),
    ):
        with pytest.raises(ValueError, match=words):
            mpp.features(encoder, given, progress=False, **options)
    plain = mpp.create_encoder("vit_tiny_patch16_224", image_size=SIZE, patch_size=4, embed_dim=24, depth=1,
                               num_heads=2, class_token=False, global_pool="avg")  # fmt: skip
    with pytest.raises(ValueError, match="has no class token; use pool='avg'"):
        mpp.features(plain, image, pool="token")


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_all_named_at_once_or_are_rows_of_nan(
    encoder: Backbone, pixels: torch.Tensor, tmp_path: Path, workers: int
):
    for number, image in enumerate(pil(pixels) * 3):
        image.save(tmp_path / f"{number:02d}.png")
    good = mpp.features(encoder, tmp_path, progress=False)
    paths = mpp.image_files(tmp_path)
    bad = [1, 4, 5, 9, 11, 14]
    for number in bad:
        paths[number].write_bytes(paths[number].read_bytes()[:60])
    options = {"progress": False, "batch_size": 4, "workers": workers}
    with pytest.raises(ValueError, match=r"6 of 15 images cannot be decoded") as caught:
        mpp.features(encoder, tmp_path, **options)
    assert caught.value.__cause__ is caught.value.__context__ is None, "one message, no chain"
    lines = str(caught.value).splitlines()
    assert [str(paths[number]) in line for number, line in zip(bad, lines[1:6], strict=False)] == [True] * 5
    assert lines[6:] == ["  and 1 more", "repair or remove them; damaged='nan' gives rows of NaN for them"]
    with pytest.warns(UserWarning, match=r"6 of 15 images cannot be decoded:\n.*01\.png"):
        found = mpp.features(encoder, tmp_path, damaged="nan", **options)
    assert np.isnan(found).all(1).nonzero()[0].tolist() == bad
    kept = [number for number in range(15) if number not in bad]
    np.testing.assert_allclose(found[kept], good[kept], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="2 of 2 images cannot be decoded"):
        mpp.features(encoder, [paths[1], paths[4]], damaged="nan", **options)


def test_what_does_not_go_with_an_encoder_or_a_control_is_refused(encoder: Backbone):
    image = random_pixels(1, SIZE)
    with pytest.raises(ValueError, match="damaged is 'raise' or 'nan'; found 'skip'"):
        mpp.features(encoder, image, damaged="skip")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="this encoder takes 16 px; leave image_size and patch_size out"):
        mpp.features(encoder, image, image_size=32)
    with pytest.raises(ValueError, match="raw_pixels has no blocks; leave layer out"):
        mpp.features("raw_pixels", image, layer=1)
    assert mpp.features("raw_pixels", image, progress=False).shape == (1, 3 * 32**2)
    assert mpp.features("patch_colors", image, progress=False).shape == (1, 3 * 8**2)
