"""Weights that others made: folders in timm's own form, and files alone as MAE, BEiT and DINOv2 are handed round."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import mpp
from mpp.encoder.export import save_encoder
from tests.support.downstream import PRETRAIN, good, refused, written
from tests.support.forkserver import ForkServer

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model_of(name: str, size: int = 32, **arguments: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size, num_classes=10, global_pool="token", **arguments).eval()
    for parameter in model.parameters():  # zeros and ones would hide what is missing
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def features(model: Any) -> torch.Tensor:
    normalized = PIXELS.float().div(255).sub(0.5).div(0.5)
    with torch.no_grad():
        return model.forward_features(normalized)


@pytest.mark.parametrize(
    ("name", "patch_size"),
    [("vit_tiny_patch16_224", 8), ("deit_tiny_distilled_patch16_224", 8), ("beit_base_patch16_224", 8),
     ("vit_small_patch14_dinov2", 8), ("eva02_tiny_patch14_224", 8)],
)  # fmt: skip
@pytest.mark.parametrize("form", ["safetensors", "pth", "an MAE's pth"])
def test_a_file_gives_the_model_s_features_to_the_last_bit(tmp_path: Path, name: str, patch_size: int, form: str):
    model = model_of(name, patch_size=patch_size, **SMALL)
    path = tmp_path / f"weights.{form.split()[-1].split('.')[-1]}"
    if form == "safetensors":
        save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, path)
    elif form == "pth":
        torch.save(model.state_dict(), path)
    else:
        decoder = {"decoder_pred.weight": torch.zeros(3, 3), "mask_token": torch.zeros(1, 1, 16)}
        torch.save({"model": model.state_dict() | decoder, "args": Namespace(lr=1e-3), "epoch": 800}, path)
    encoder = mpp.load_encoder(path, name=name, image_size=32, patch_size=patch_size, allow_pickle=True, **SMALL)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(PIXELS), features(model))


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(
    ("name", "more"),
    [("vit_tiny_patch16_224", {}), ("vit_tiny_patch16_224", {"global_pool": ""}),
     ("vit_tiny_patch16_224", {"global_pool": "avg"}), ("deit_tiny_distilled_patch16_224", {}),
     ("beit_base_patch16_224", {}), ("vit_small_patch14_reg4_dinov2", {}), ("vit_small_patch16_dinov3", {}),
     ("vit_base_patch16_siglip_224", {}), ("eva02_tiny_patch14_224", {})],
)  # fmt: skip
def test_what_timm_itself_saves_gives_its_features_to_the_last_bit(
    tmp_path: Path, name: str, more: dict[str, Any], explicit: bool
):
    """With the number of classes and a pair of sizes among the arguments, as timm writes them."""
    arguments: dict[str, Any] = {"patch_size": 8, "img_size": 32, **SMALL, **more}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    config = {"model_args": {**arguments, "num_classes": 0, "img_size": [32, 32]}} if explicit else None
    save_for_hf(model, str(tmp_path), model_config=config, safe_serialization=True)
    encoder = mpp.load_encoder(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(encoder(PIXELS), model.forward_features(encoder.normalize(PIXELS)))
        assert encoder.pooled(encoder(PIXELS)).shape == (3, 32), "one feature, whatever its maker pooled"


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "timm"])
def test_at_another_image_size_it_is_as_an_exported_encoder_would_be(tmp_path: Path, resize: Any):
    path = tmp_path / "weights.safetensors"
    save_file(model_of("vit_tiny_patch16_224", patch_size=8, **SMALL).state_dict(), path)
    own = mpp.load_encoder(path, name="vit_tiny_patch16_224", patch_size=8, **SMALL)
    assert own.image_size == 32, "which the number of positions tells"
    save_encoder(own, tmp_path / "exported")
    expected = mpp.load_encoder(tmp_path / "exported", image_size=48, resize=resize).model.state_dict()
    larger = mpp.load_encoder(path, name="vit_tiny_patch16_224", patch_size=8, image_size=48, resize=resize, **SMALL)
    assert larger.image_size == 48
    found = larger.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "unpickled")


def test_a_pickle_is_refused_unless_asked_for_and_even_then_its_code_is_not_run(tmp_path: Path):
    model = model_of("vit_tiny_patch16_224", patch_size=8, **SMALL)
    torch.save({"model": model.state_dict(), "more": Mischief(tmp_path / "done")}, tmp_path / "weights.pth")
    settings = {"name": "vit_tiny_patch16_224", "patch_size": 8, **SMALL}
    with pytest.raises(ValueError, match=r"weights\.pth is a pickle, .* encoder\.allow_pickle=true"):
        mpp.load_encoder(tmp_path / "weights.pth", **settings)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read"):
        mpp.load_encoder(tmp_path / "weights.pth", allow_pickle=True, **settings)
    assert not (tmp_path / "done").exists()


def test_weights_of_something_else_are_refused_by_name(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file(model_of("vit_tiny_patch16_224", patch_size=8, **SMALL).state_dict(), path)
    deeper = {**SMALL, "depth": 3}
    with pytest.raises(ValueError, match=r"not those of vit_tiny_patch16_224: 12 are missing, e\.g\. blocks\.2\."):
        mpp.load_encoder(path, name="vit_tiny_patch16_224", patch_size=8, **deeper)
    with pytest.raises(ValueError, match=r"not those of vit_tiny_patch16_224: size mismatch"):
        mpp.load_encoder(path, name="vit_tiny_patch16_224", patch_size=8, **{**SMALL, "embed_dim": 64})
    with pytest.raises(ValueError, match=r"does not say of what: give the name"):
        mpp.load_encoder(path)
    (tmp_path / "weights.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"weights\.txt is no file of weights; expected \.safetensors"):
        mpp.load_encoder(tmp_path / "weights.txt", name="vit_tiny_patch16_224")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read"):
        mpp.load_encoder(tmp_path / "cut.safetensors", name="vit_tiny_patch16_224")


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg_overlay", "cache_dir", "num_classes"])
def test_arguments_of_a_recipe_say_what_the_network_is_and_not_where_weights_are(
    tinted_images: Path, commands: ForkServer, tmp_path: Path, argument: str
):
    recipe = written(tmp_path / "pretrain.yaml", PRETRAIN, tinted_images, tmp_path / "run")
    said = commands.run("mpp.pretrain", recipe, f"encoder.arguments.{argument}=/some/where.pth")
    refused(said, "encoder.arguments cannot hold", argument)


def test_a_recipe_starts_from_a_file(tinted_images: Path, commands: ForkServer, tmp_path: Path):
    path = tmp_path / "mae.pth"
    model = model_of("vit_tiny_patch16_224", size=16, patch_size=4, **SMALL)
    torch.save({"model": model.state_dict()}, path)
    recipe = written(tmp_path / "pretrain.yaml", PRETRAIN, tinted_images, tmp_path / "run")
    refused(commands.run("mpp.pretrain", recipe, f"encoder.source={path}"), str(path), "encoder.allow_pickle=true")
    settings = (f"encoder.source={path}", "encoder.allow_pickle=true", "training.duration.steps=1", "optimizer.lr=1e-9")
    refused(commands.run("mpp.pretrain", recipe, *settings, "encoder.arguments.depth=3"), "are missing", str(path))
    good(commands.run("mpp.pretrain", recipe, *settings))
    started = mpp.load_encoder(tmp_path / "run").model.state_dict()
    for key, value in started.items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=1e-6)
