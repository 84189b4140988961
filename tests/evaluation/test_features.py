"""Frozen features are what timm itself gives, row by row; and they are read again only when something is other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load, load_file, save_file

import mpp
from mpp.data.settings import DataSettings
from mpp.encoder.create import create_backbone
from mpp.evaluation.controls import Control
from mpp.evaluation.features import EncoderReader, FeatureLayer, cache_key
from mpp.evaluation.settings import FeatureSettings
from tests.support.downstream import EVALUATE, TEST, TRAIN, as_two, crops, features_on_disk, good, tinted, written
from tests.support.forkserver import ForkServer
from tests.support.reference import random_pixels
from tests.support.runs import free_port, write_parquet

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
FAMILIES: list[tuple[str, int, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", 16, {"patch_size": 4, **SMALL}),
    ("vit_tiny_patch16_224", 16, {"patch_size": 4, "pool": "avg", **SMALL}),
    ("vit_small_patch14_reg4_dinov2", 28, SMALL),  # four registers
    ("deit_tiny_distilled_patch16_224", 32, SMALL),
    ("eva02_tiny_patch14_224", 28, SMALL),  # rotary positions
    ("vit_small_patch16_dinov3", 32, SMALL),
    ("vit_relpos_small_patch16_224", 32, SMALL),  # no class token
]
BOTH = FeatureSettings(pools=("token", "avg", "both"))


def scrambled(model: torch.nn.Module) -> None:
    """Weights as after training: no norm is trivial, no two tokens are alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture(params=FAMILIES, ids=[f"{name}-{arguments.get('pool')}" for name, _, arguments in FAMILIES])
def family(request: pytest.FixtureRequest) -> tuple[Any, Any, torch.Tensor]:
    """Our encoder, timm's own model with its weights, and pixels."""
    name, size, arguments = request.param
    encoder = mpp.create_encoder(name, image_size=size, **arguments).eval()
    scrambled(encoder)
    model = timm.create_model(name, num_classes=0, **encoder.arguments).eval()
    model.load_state_dict(encoder.vit.state_dict())
    return encoder, model, random_pixels(5, size)


def test_the_last_block_gives_what_the_timm_model_gives_to_the_last_bit(family: tuple[Any, Any, torch.Tensor]):
    encoder, model, pixels = family
    reader = EncoderReader(encoder)
    assert reader.default == FeatureLayer(len(model.blocks), model.global_pool)
    with torch.no_grad():
        found = reader.read(pixels, reader.layers(BOTH))
        assert torch.equal(found[reader.default], model(encoder.normalize(pixels)))


def test_every_block_is_timm_s_own_intermediate_with_the_final_norm(family: tuple[Any, Any, torch.Tensor]):
    encoder, model, pixels = family
    reader = EncoderReader(encoder)
    prefix, depth = model.num_prefix_tokens, len(model.blocks)
    pools = ["token", "avg", "both"] if prefix else ["avg"]
    places = reader.layers(BOTH)
    assert places == [FeatureLayer(block, pool) for block in range(1, depth + 1) for pool in pools]
    with torch.no_grad():
        found = reader.read(pixels, places)
        blocks = model.forward_intermediates(
            encoder.normalize(pixels),
            norm=True,
            output_fmt="NLC",
            return_prefix_tokens=prefix > 0,
            intermediates_only=True,
        )
    assert len(blocks) == depth
    seen = []
    for number, block in enumerate(blocks, start=1):
        patches, tokens = block if prefix else (block, None)
        expected = {"avg": model.fc_norm(patches.mean(1)) if hasattr(model, "fc_norm") else patches.mean(1)}
        if tokens is not None:
            distilled = "distilled" in encoder.name and number == depth  # timm's own feature is the mean of both
            expected["token"] = tokens[:, :2].mean(1) if distilled else tokens[:, 0]
            expected["both"] = torch.cat([expected["token"], expected["avg"]], dim=1)
        for pool, value in expected.items():
            torch.testing.assert_close(found[FeatureLayer(number, pool)], value, rtol=1e-5, atol=1e-6)
            seen.append(value)
    if prefix:
        both = found[FeatureLayer(1, "both")]
        assert torch.equal(both, torch.cat([found[FeatureLayer(1, "token")], found[FeatureLayer(1, "avg")]], dim=1))
    for one in range(len(seen)):  # the places are far enough apart for the tolerance to mean something
        for other in range(one):
            assert seen[one].shape != seen[other].shape or (seen[one] - seen[other]).abs().max() > 1e-3


def test_reading_leaves_no_hook_behind(family: tuple[Any, Any, torch.Tensor]):
    encoder, _, pixels = family
    reader = EncoderReader(encoder)
    with torch.no_grad():
        reader.read(pixels, reader.layers(BOTH))
    assert not any(block._forward_hooks for block in encoder.vit.blocks)


def test_a_register_is_no_class_token():
    encoder = mpp.create_encoder("test_vit2", image_size=32).eval()
    assert encoder.vit.cls_token is None
    assert {place.pool for place in EncoderReader(encoder).layers(FeatureSettings())} == {"avg"}


def test_a_network_without_patches_has_its_last_feature_alone():
    backbone = create_backbone("test_resnet", image_size=20).eval()
    reader = EncoderReader(backbone)
    pixels = random_pixels(3, 20)
    assert reader.layers(BOTH) == [FeatureLayer(1, "avg")]
    with torch.no_grad():
        found = reader.read(pixels, reader.layers(BOTH))
        assert torch.equal(found[FeatureLayer(1, "avg")], backbone.model(backbone.normalize(pixels)))


def test_blocks_can_be_named_and_the_last_is_always_among_them():
    encoder = mpp.create_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, **SMALL)
    reader = EncoderReader(encoder)
    assert reader.layers(FeatureSettings(blocks=(1,), pools=("avg",))) == [
        FeatureLayer(1, "avg"), FeatureLayer(3, "avg"), FeatureLayer(3, "token"),
    ]  # fmt: skip
    assert {place.block for place in reader.layers(FeatureSettings(blocks="last"))} == {3}
    with pytest.raises(ValueError, match=r"features.blocks 4: vit_tiny_patch16_224 has 3 blocks"):
        reader.layers(FeatureSettings(blocks=(2, 4)))


def block_means(pixels: np.ndarray, side: int) -> np.ndarray:
    images, channels, size, _ = pixels.shape
    step = size // side
    squares = pixels.reshape(images, channels, side, step, side, step).astype(np.float64) / 255
    return squares.mean((3, 5)).reshape(images, -1)


@pytest.mark.parametrize(
    ("name", "size", "patch_size", "side"),
    [
        ("raw_pixels", 16, 4, 16),
        ("raw_pixels", 32, None, 32),
        ("raw_pixels", 64, None, 32),
        ("patch_colors", 16, 4, 4),
        ("patch_colors", 32, None, 8),
    ],
)
def test_the_controls_are_means_of_pixels(name: str, size: int, patch_size: int | None, side: int):
    control = Control(name, size, patch_size)
    pixels = random_pixels(4, size)
    assert control.layers(BOTH) == [FeatureLayer(0, "avg")]
    found = control.read(pixels, control.layers(BOTH))[FeatureLayer(0, "avg")]
    np.testing.assert_allclose(found.numpy(), block_means(pixels.numpy(), side), rtol=0, atol=1e-6)


def test_patch_colors_refuses_patches_that_do_not_divide_the_image():
    with pytest.raises(ValueError, match="image_size 18 is not a multiple of the patch size 4"):
        Control("patch_colors", 18, 4)


# On disk, by whole commands


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "features").iterdir()}


@pytest.fixture(scope="module")
def evaluated(commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory):
    """(recipe, folder) of an evaluation of the run."""
    home = tmp_path_factory.mktemp("evaluated")
    recipe = written(home / "recipe.yaml", EVALUATE, tinted_images)
    good(commands.run("mpp.evaluate", recipe, f"encoder={pretrained}", f"output_dir={home / 'out'}"))
    return recipe, home / "out"


@pytest.fixture
def again(evaluated: tuple[Path, Path], commands: ForkServer, pretrained: Path, tmp_path: Path):
    """Evaluate once more in a copy of the folder; (old files, new files), by name and time of writing."""
    recipe, folder = evaluated
    shutil.copytree(folder, tmp_path / "out")

    def run(*changes: str) -> tuple[dict[str, int], dict[str, int]]:
        before = stamps(tmp_path / "out")
        arguments = {"encoder": str(pretrained), "output_dir": str(tmp_path / "out")}
        arguments |= dict(change.split("=", 1) for change in changes)
        good(commands.run("mpp.evaluate", recipe, *(f"{key}={value}" for key, value in arguments.items())))
        return before, stamps(tmp_path / "out")

    return run


def test_rows_are_in_their_order_also_where_batches_and_processes_do_not_divide_them(
    commands: ForkServer, evaluated: tuple[Path, Path], pretrained: Path, tinted_images: Path, tmp_path: Path
):
    """TEST is odd, and no multiple of any batch size here."""
    recipe, folder = evaluated
    whole = {rows: features_on_disk(folder / "features", rows) for rows in (TRAIN, TEST)}
    two = [f"encoder={pretrained}", f"output_dir={tmp_path / 'two'}", "features.batch_size=7"]
    for command in as_two(commands, "mpp.evaluate", free_port(), recipe, *two):
        good(command)
    parts = {rows: features_on_disk(tmp_path / "two" / "features", rows) for rows in (TRAIN, TEST)}
    encoder = mpp.load_encoder(pretrained).eval()
    for rows, split in ((TRAIN, "train"), (TEST, "test")):
        expected = straight(encoder, tinted_images / f"{split}.parquet")
        assert whole[rows]["labels"].tolist() == parts[rows]["labels"].tolist() == [row % 3 for row in range(rows)]
        for place in ("block 2, token", "block 1, avg"):
            assert torch.allclose(whole[rows][place], parts[rows][place], rtol=0, atol=1e-5)
        torch.testing.assert_close(whole[rows]["block 2, avg"], expected, rtol=0, atol=1e-5)
        assert torch.pdist(expected).min() > 1e-3, "a row in another's place would show"
    assert json.loads((folder / "results.json").read_text())["test_images"] == TEST


def straight(encoder: Any, path: Path) -> torch.Tensor:
    """Features of a Parquet file's images, one after the other, in the order of its rows."""
    pixels, _ = crops(path)
    with torch.no_grad():
        return torch.cat([encoder.vit(encoder.normalize(crop)) for crop in pixels.split(1)])


def test_the_same_again_reads_nothing_anew(again: Any):
    before, after = again()
    assert len(before) == 2
    assert after == before


def test_fewer_places_are_found_among_those_that_were_kept(again: Any):
    before, after = again("features.blocks=last", "knn.k=[3]", "features.batch_size=5")
    assert after == before


@pytest.mark.parametrize(
    "change",
    [
        "data.crop_pct=0.8",
        "data.interpolation=bicubic",
        "data.max_pixels=1000000",
        "compute.precision=bfloat16",
        "encoder.pretrained=false",
    ],
)
def test_other_settings_are_read_anew(again: Any, change: str):
    before, after = again(change)
    assert len(after) == 4
    assert {name: after[name] for name in before} == before


def test_one_other_weight_is_read_anew(again: Any, pretrained: Path, tmp_path: Path):
    shutil.copytree(pretrained / "encoder", tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors["blocks.1.mlp.fc2.bias"][3] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    before, after = again(f"encoder={tmp_path / 'encoder'}")
    assert len(after) == 4
    assert {name: after[name] for name in before} == before


def test_other_images_are_read_anew_and_the_other_split_is_not(again: Any, tinted_images: Path, tmp_path: Path):
    """Four images stand for all: reading every byte before each evaluation would take as long as the features."""
    images = tinted(TRAIN, 0)
    images[TRAIN // 2] = tinted(1, 99)[0]
    write_parquet(tmp_path / "data" / "train.parquet", images, [row % 3 for row in range(TRAIN)])
    shutil.copy(tinted_images / "test.parquet", tmp_path / "data")
    before, after = again(f"data.source={tmp_path / 'data'}")
    assert {name: after[name] for name in before} == before
    assert len(after) == 3
    fresh = load_file(tmp_path / "out" / "features" / next(iter(after.keys() - before.keys())))
    old = features_of(tmp_path, before, TRAIN)
    changed = (fresh["block 2, token"] - old["block 2, token"]).abs().amax(1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [TRAIN // 2]


def test_other_labels_are_read_anew(again: Any, tinted_images: Path, tmp_path: Path):
    labels = [row % 3 for row in range(TRAIN)]
    labels[70] = (labels[70] + 1) % 3
    write_parquet(tmp_path / "data" / "train.parquet", tinted(TRAIN, 0), labels)
    shutil.copy(tinted_images / "test.parquet", tmp_path / "data")
    _, after = again(f"data.source={tmp_path / 'data'}")
    assert len(after) == 3


def test_few_images_are_read_to_find_cached_features():
    """However many rows there are."""
    read: list[int] = []

    class Rows:
        labels = np.arange(1000) % 3

        def __len__(self) -> int:
            return 1000

        def encoded(self, row: int) -> bytes:
            read.append(row)
            return b"image"

    crops = SimpleNamespace(settings=DataSettings(), images=SimpleNamespace(rows=Rows()))
    cache_key(Control("raw_pixels", 16, None), crops, np.arange(0, 1000, 2), [])  # pyright: ignore[reportArgumentType]
    assert 0 < len(read) <= 4


def features_of(home: Path, names: dict[str, int], rows: int) -> dict[str, torch.Tensor]:
    found = [load_file(home / "out" / "features" / name) for name in names]
    return next(tensors for tensors in found if len(tensors["labels"]) == rows)


@pytest.mark.parametrize("kept", [0, 100, 0.5, "all but a bit"])
def test_a_damaged_file_of_features_is_read_anew(again: Any, evaluated: tuple[Path, Path], tmp_path: Path, kept: Any):
    path = max((tmp_path / "out" / "features").iterdir(), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    tensors = load(content)
    if kept == "all but a bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    else:
        path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    before, after = again()
    mended = load_file(path)
    assert mended.keys() == tensors.keys()
    assert all(torch.equal(mended[name], value) for name, value in tensors.items())
    assert [name for name in before if after[name] != before[name]] == [path.name]
    now, then = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", evaluated[1]))
    assert now["scores"] == then["scores"]
