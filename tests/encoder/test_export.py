"""What is exported, in the hands of timm and transformers: another head, other channels, another size."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.models import save_for_hf

import mpp
from mpp.encoder.arguments import NOT_ARCHITECTURE
from mpp.encoder.backbone import Backbone
from mpp.encoder.create import create_backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.export import export_classifier, save_encoder
from mpp.encoder.probe import probe
from mpp.hub.stage import stage
from tests.support.downstream import good
from tests.support.forkserver import ForkServer

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
VIT = {"patch_size": 8, **SMALL}
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", 32, VIT),
    "distilled": ("deit_tiny_distilled_patch16_224", 32, VIT),
    "hybrid": ("vit_tiny_r_s16_p8_224", 64, SMALL),
    "eva": ("eva02_tiny_patch14_224", 32, VIT),
    "dinov3": ("vit_small_patch16_dinov3", 32, VIT),
    "beit": ("beit_base_patch16_224", 32, VIT),
    "dinov2": ("vit_small_patch14_dinov2", 32, VIT),
    "registers": ("vit_small_patch14_reg4_dinov2", 32, VIT),
    "relative positions": ("vit_relpos_small_patch16_224", 32, VIT),
    "attention pool": ("vit_base_patch16_siglip_224", 32, VIT),
    "resnet": ("test_resnet", 32, {}),
    "convnext": ("test_convnext", 64, {}),
    "efficientnet": ("test_efficientnet", 32, {}),
    "a cnn of a fixed size": ("test_maxvit", 64, {}),
}
REQUESTS: list[dict[str, Any]] = [
    {},
    {"num_classes": 10},
    {"in_chans": 1},
    {"num_classes": 10, "in_chans": 4},
    {"img_size": 128},
    {"drop_path_rate": 0.1},
    {"features_only": True},
    {"dynamic_img_size": True, "num_classes": 10},
]


def backbone_of(family: str) -> Backbone:
    name, size, arguments = FAMILIES[family]
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=size, **arguments)
    for parameter in backbone.parameters():  # zeros and ones would hide what is missing
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return backbone.eval()


def images(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def last_features(folder: Path, size: int, **request: Any) -> torch.Tensor | str:
    """Of the last block, or why timm refuses."""
    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, **request).eval()
    except (TypeError, AssertionError) as error:
        return str(error)
    pixels = images(request.get("img_size", size), request.get("in_chans", 3))
    with torch.no_grad():
        return model(pixels)[-1] if "features_only" in request else model.forward_features(pixels)


@pytest.mark.parametrize("classifier", [False, True], ids=["encoder", "classifier"])
@pytest.mark.parametrize("family", FAMILIES)
def test_timm_adapts_what_was_exported_as_it_does_its_own_pretrained_models(
    family: str, classifier: bool, tmp_path: Path
):
    """The reference is the same network with a head, saved by timm."""
    backbone, size = backbone_of(family), FAMILIES[family][1]
    reference: Any = timm.create_model(backbone.name, num_classes=5, **backbone.arguments)
    reference.load_state_dict(backbone.model.state_dict(), strict=False)
    save_for_hf(reference, str(tmp_path / "timm"), safe_serialization=True)
    if classifier:
        weight, bias = torch.randn(5, backbone.width), torch.randn(5)
        export_classifier(backbone, weight, bias, list("abcde"), tmp_path / "ours")
    else:
        save_encoder(backbone, tmp_path / "ours")
    for request in REQUESTS[::2] if classifier else REQUESTS:
        expected = last_features(tmp_path / "timm", size, **request)
        found = last_features(tmp_path / "ours", size, **request)
        assert type(found) is type(expected), (request, found, expected)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected), request
        else:
            assert found == expected, "refused for another reason"
    with torch.no_grad():
        plain = backbone.model.forward_features(images(size))
        for request in ({}, {"num_classes": 10}, {"drop_path_rate": 0.1}):
            assert torch.equal(last_features(tmp_path / "ours", size, **request), plain), "the weights are not in"


@pytest.mark.parametrize("family", [name for name, (_, _, arguments) in FAMILIES.items() if arguments])
def test_another_pool_keeps_the_final_norm_in_its_place(family: str, tmp_path: Path):
    """Where timm offers that pool for the architecture."""
    backbone, size = backbone_of(family), FAMILIES[family][1]
    assert isinstance(backbone, Encoder)
    save_encoder(backbone, tmp_path)
    prefix, vit = backbone.layout.num_prefix_tokens, backbone.vit
    with torch.no_grad():
        tokens = vit.forward_features(images(size))
        pools = {"token": tokens[:, 0], "avg": tokens[:, prefix:].mean(1)}
        for pool in pools if vit.cls_token is not None and family != "distilled" else ["avg"][: family != "distilled"]:
            for more in ({}, {"num_classes": 10}):
                model: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, global_pool=pool, **more)
                found = model.eval().forward_head(model.forward_features(images(size)), pre_logits=True)
                torch.testing.assert_close(found, vit.fc_norm(pools[pool]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [name for name, (_, _, arguments) in FAMILIES.items() if arguments])
def test_an_encoder_can_pool_its_patches_from_now_on(family: str, tmp_path: Path):
    backbone, size = backbone_of(family), FAMILIES[family][1]
    assert isinstance(backbone, Encoder)
    before = {name: value.clone() for name, value in backbone.vit.state_dict().items()}
    backbone.pool_patches()
    assert backbone.pool == ("token" if family == "distilled" else "avg")
    assert all(torch.equal(value, before[name]) for name, value in backbone.vit.state_dict().items())
    save_encoder(backbone, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["global_pool"] == config["model_args"]["global_pool"] == backbone.pool
    in_timm: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    here = mpp.load_encoder(tmp_path).eval()
    assert here.arguments == backbone.arguments
    with torch.no_grad():
        tokens = backbone.vit.forward_features(images(size))
        assert torch.equal(in_timm(images(size)), backbone.pooled(tokens))
        assert torch.equal(here.pooled(tokens), backbone.pooled(tokens))
        if backbone.pool == "avg":
            mean = tokens[:, backbone.layout.num_prefix_tokens :].mean(1)
            torch.testing.assert_close(backbone.pooled(tokens), backbone.vit.fc_norm(mean), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_and_adapts_it(family: str, tmp_path: Path):
    from transformers import AutoModel, AutoModelForImageClassification

    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)  # kernels round by where weights lie in memory
    backbone, size = backbone_of(family), FAMILIES[family][1]
    save_encoder(backbone, tmp_path)
    model: Any = AutoModel.from_pretrained(tmp_path).eval()
    adapted: Any = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=10).eval()
    with torch.no_grad():
        features = backbone.model.forward_features(images(size))
        found = model(pixel_values=images(size))
        close(found.last_hidden_state, features)
        close(found.pooler_output, backbone.pooled(features))
        assert adapted(pixel_values=images(size)).logits.shape == (2, 10)
        close(adapted.timm_model.forward_features(images(size)), features)


@pytest.mark.parametrize("family", ["plain", "resnet"])
def test_a_pipeline_of_transformers_takes_images(family: str, tmp_path: Path):
    from transformers import pipeline

    backbone, size = backbone_of(family), FAMILIES[family][1]
    save_encoder(backbone, tmp_path)
    pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extract: Any = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    found = extract(Image.fromarray(pixels.numpy()), pool=True)
    with torch.no_grad():
        feature = backbone.pooled(backbone(pixels.permute(2, 0, 1)[None]))
    np.testing.assert_allclose(np.asarray(found), feature.numpy(), rtol=1e-4, atol=1e-4)


def test_a_run_exports_what_its_objective_trains_and_timm_tunes_it_from_the_run_and_the_push(
    pretrained: Path, tmp_path: Path
):
    stage(pretrained, tmp_path / "pushed", repo_id="user/name", licence=None)
    encoder = mpp.load_encoder(pretrained).eval()
    assert isinstance(encoder, Encoder)
    for folder in (pretrained / "encoder", tmp_path / "pushed"):
        config = json.loads((folder / "config.json").read_text())
        assert config["global_pool"] == "avg", "masked patch prediction does not train the class token"
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=10).eval()
        assert resolve_data_config({}, model=model)["input_size"] == (3, 16, 16)
        with torch.no_grad():
            tokens = encoder.vit.forward_features(images(16))
            assert torch.equal(model.forward_features(images(16)), tokens)
            assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 1:].mean(1))
        token = mpp.load_encoder(folder, pool="token").eval()
        assert torch.equal(token.pooled(tokens), tokens[:, 0])


def test_an_export_of_an_earlier_version_still_loads(tmp_path: Path):
    """It pooled the class token, and did not say where the final norm is."""
    backbone = backbone_of("plain")
    save_encoder(backbone, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]["fc_norm"]
    config["pretrained_cfg"] |= {"first_conv": None, "classifier": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        tokens = backbone.vit.forward_features(images(32))
        assert torch.equal(mpp.load_encoder(tmp_path).eval().pooled(tokens), tokens[:, 0])
        assert torch.equal(mpp.load_encoder(tmp_path, pool="avg").eval().pooled(tokens), tokens[:, 1:].mean(1))


@pytest.mark.parametrize("setting", ["objective.kind=masked_patch", "encoder={name: test_resnet}"])
def test_a_run_asks_one_probe_and_builds_one_network(
    commands: ForkServer, tiny_recipe: Path, setting: str, tmp_path: Path
):
    more = ["objective.kind=supervised", "reconstructions.images=0"] if "resnet" in setting else []
    ran = good(commands.run("tests.support.counted", "mpp.pretrain", tiny_recipe, setting, *more))
    built = json.loads(ran.text.strip().splitlines()[-1])
    assert built["networks"] == 1
    assert built["probes"] <= 1


def test_a_probe_is_kept_whatever_the_pool():
    first = probe("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg"}, 32)
    assert probe("vit_tiny_patch16_224", {"depth": 1}, 32) is first
    assert probe("vit_tiny_patch16_224", {"depth": 2}, 32) is not first


@pytest.mark.parametrize("argument", [*sorted(NOT_ARCHITECTURE - {"pretrained"}), "foo", "img_size"])
def test_loading_swallows_no_argument(argument: str, pretrained: Path):
    with pytest.raises(ValueError, match=argument):
        mpp.load_encoder(pretrained, **{argument: 8})


def test_random_weights_are_refused_with_what_makes_them(pretrained: Path):
    for source in ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k"):
        with pytest.raises(ValueError, match=r"use mpp\.create_encoder\('vit_tiny_patch16_224'\)"):
            mpp.load_encoder(source, pretrained=False)
    with pytest.raises(ValueError, match=r"name is for files of weights; .* is a vit_tiny_patch16_224, found name='vi"):
        mpp.load_encoder(pretrained, name="vit_base_patch16_224")
