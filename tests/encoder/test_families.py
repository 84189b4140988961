"""Every family of timm encoders with a tensor patch embedding; everything else is refused when it is built."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import mpp
from mpp.encoder.export import save_encoder
from tests.support.reference import (
    at,
    embeddings,
    full_patch_labels,
    inputs_of,
    mean_color_labels,
    outputs_of,
    random_pixels,
    scramble,
    swap_sources,
)

FAMILIES = [  # name, image size, patch size asked for, pixels a patch, prefix tokens, timm's further arguments
    ("vit_tiny_patch16_224", 64, None, 16, 1),
    ("vit_tiny_patch16_224", 32, 4, 4, 1),
    ("vit_small_patch16_224", 56, 14, 14, 1),
    ("vit_huge_patch14_224", 56, None, 14, 1, {"depth": 1, "embed_dim": 160}),  # heads of an odd width
    ("deit_tiny_patch16_224", 64, 8, 8, 1),
    ("deit3_small_patch16_224", 64, None, 16, 1),  # position embedding without the class token
    ("deit_tiny_distilled_patch16_224", 64, None, 16, 2),
    ("vit_tiny_r_s16_p8_224", 128, None, 32, 1),
    ("vit_small_r26_s32_224", 128, None, 32, 1),
    ("vit_base_r50_s16_224", 64, None, 16, 1, {"depth": 1}),  # the paper's hybrid: its own stem and width
    ("test_vit2", 64, None, 16, 1),  # a register, no class token
    ("eva02_tiny_patch14_224", 56, None, 14, 1),
    ("vit_small_patch16_rope_mixed_224", 64, None, 16, 1),
    ("vit_small_patch16_dinov3", 64, None, 16, 5),
    ("beit_base_patch16_224", 64, None, 16, 1),
    ("vit_small_patch14_dinov2", 56, None, 14, 1),
    ("vit_small_patch14_reg4_dinov2", 56, None, 14, 5),
    ("vit_relpos_small_patch16_224", 64, None, 16, 0),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=[f"{f[0]}-{f[1]}px-P{f[3]}" for f in FAMILIES])
def family(request):
    name, size, patch_size, patch, prefix, *further = request.param
    torch.manual_seed(0)
    arguments = dict(*further) | ({"patch_size": patch_size} if patch_size else {})
    encoder = mpp.create_encoder(name, image_size=size, **arguments)
    encoder.eval()  # some (relpos) draw dropout in training
    pixels = random_pixels(3, size)
    count = (size // patch) ** 2
    return SimpleNamespace(
        name=name, encoder=encoder, vit=encoder.vit, pixels=pixels, patch=patch, prefix=prefix, count=count,
        size=size, arguments=arguments,
    )  # fmt: skip


def build(family, target=None, **corruption):
    target = target or mpp.MeanColor()
    objective = mpp.MaskedPatchPrediction(family.encoder, target=target, corruption=mpp.Corruption(**corruption))
    scramble(objective, family.vit)
    return objective


def test_the_encoder_is_timm_s_model_with_its_own_keys(family):
    arguments = {"img_size": family.size, "num_classes": 0, **family.arguments}
    if "distilled" not in family.name:
        arguments["global_pool"] = ""
    reference = timm.create_model(family.name, **arguments).eval()
    assert type(family.vit) is type(reference)
    reference.load_state_dict(family.vit.state_dict(), strict=True)
    images = torch.randn(2, 3, family.size, family.size)
    with torch.no_grad():
        assert torch.equal(family.vit.forward_features(images), reference.forward_features(images))


def test_kept_patches_leave_timm_s_features_to_the_last_bit(family):
    objective = build(family, mask=0.0, swap=0.0, keep=1.0)
    with torch.no_grad():
        with inputs_of(family.vit.patch_embed) as door, outputs_of(family.vit.norm) as final:
            objective(family.pixels, samples=torch.arange(3))
        features = family.vit.forward_features(door[0])
    assert features.shape[1] == family.prefix + family.count
    assert torch.equal(final[0], features)


def test_corruption_meets_the_patch_embeddings_and_nothing_else(family):
    objective = build(family, mask=0.4, swap=0.4, keep=0.2)
    prediction, clean, corrupted = embeddings(objective, family.vit, family.pixels, torch.arange(3))
    assert clean.shape[1] == family.count
    assert prediction.positions.shape == (3, max(1, int(family.count / 2 + 0.5)))
    swap_sources(prediction, clean, corrupted)
    untouched = torch.ones(3, family.count, dtype=torch.bool)
    for kind in (0, 1):
        image, k = (prediction.kinds == kind).nonzero(as_tuple=True)
        untouched[image, prediction.positions[image, k]] = False
    assert torch.equal(corrupted[untouched], clean[untouched])
    image, k = (prediction.kinds == 0).nonzero(as_tuple=True)
    masks = corrupted[image, prediction.positions[image, k]]
    assert torch.equal(masks, masks[:1].expand_as(masks))


def test_one_training_step_reaches_every_parameter_and_only_the_right_rows(family):
    objective = build(family)
    with outputs_of(family.vit.norm) as final:
        prediction = objective(family.pixels, samples=torch.arange(3))
    assert (prediction.kinds == 0).any()
    final[0].retain_grad()
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
    optimizer.zero_grad()
    prediction.loss.backward()
    rows = final[0].grad.abs().amax(-1) > 0
    assert torch.equal(rows, torch.zeros_like(rows).scatter_(1, prediction.positions + family.prefix, True))
    unused = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == [], "parameters without a gradient stop DDP"
    optimizer.step()
    with torch.no_grad():
        assert torch.isfinite(objective(family.pixels, samples=torch.arange(3)).loss)


def test_targets_are_those_of_the_token_s_own_pixels(family):
    pixels = family.pixels.numpy()
    with torch.no_grad():
        colour = build(family)(family.pixels, samples=torch.arange(3))
        full = build(family, mpp.FullPatch())(family.pixels, samples=torch.arange(3))
    np.testing.assert_array_equal(
        colour.labels.numpy(), at(mean_color_labels(pixels, family.patch, 3), colour.positions)
    )
    expected = at(full_patch_labels(pixels, family.patch), full.positions).astype(np.float32)
    np.testing.assert_array_max_ulp(full.labels.numpy(), expected, maxulp=1)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "xcit_nano_12_p16_224",
        "pit_ti_224",
        "naflexvit_base_patch16_gap",
    ],
)
def test_models_without_one_token_a_patch_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        mpp.create_encoder(name)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="vit_tiny_patch16_224"):
        mpp.create_encoder("vit_tinny_patch16_224")


def test_a_patch_size_for_a_hybrid_is_refused():
    with pytest.raises(ValueError, match=r"patch_size|patch size"):
        mpp.create_encoder("vit_tiny_r_s16_p8_224", image_size=128, patch_size=16)


@pytest.mark.parametrize(("size", "patch_size", "patch"), [(50, None, 16), (64, 7, 7), (8, 16, 16)])
def test_a_size_that_does_not_divide_is_refused_with_both_numbers(size, patch_size, patch):
    arguments = {"patch_size": patch_size} if patch_size else {}
    with pytest.raises(ValueError, match=rf"(?s)\b{size}\b.*\b{patch}\b|\b{patch}\b.*\b{size}\b"):
        mpp.create_encoder("vit_tiny_patch16_224", image_size=size, **arguments)


@pytest.mark.parametrize("arguments", [{"class_token": False}, {"class_token": False, "pool": "avg"}])
def test_a_plain_vit_may_do_without_a_class_token(arguments: dict):
    encoder = mpp.create_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=1, **arguments)
    assert encoder.layout.num_prefix_tokens == 0
    assert encoder.pool == "avg"
    with pytest.raises(ValueError, match="no class token"):
        mpp.create_encoder("vit_tiny_patch16_224", image_size=32, depth=1, class_token=False, pool="token")


def test_timm_s_own_name_of_the_size_is_refused():
    with pytest.raises(ValueError, match="image_size=32 instead"):
        mpp.create_encoder("vit_tiny_patch16_224", img_size=32)


def test_the_model_s_own_sizes_are_the_default():
    encoder = mpp.create_encoder("deit_tiny_patch16_224")
    objective = mpp.MaskedPatchPrediction(encoder, target=mpp.MeanColor(), corruption=mpp.Corruption(), seed=0)
    with torch.no_grad():
        assert objective(random_pixels(1, 224)).positions.shape == (1, 98)


def test_a_source_that_is_neither_run_nor_folder_nor_name_is_refused():
    with pytest.raises((ValueError, OSError), match="no_such_model_at_all"):
        mpp.load_encoder("no_such_model_at_all")


def test_a_timm_folder_whose_size_is_in_its_description_alone_has_that_size(tmp_path: Path):
    """As timm saves a model of a fixed size that it was not given as an argument."""
    vit = timm.create_model("test_vit", num_classes=0, img_size=96).eval()
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {
        "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 96, 96], "fixed_input_size": True,
    }}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    pixels = random_pixels(2, 96)
    encoder = mpp.load_encoder(tmp_path).eval()
    assert (encoder.image_size, encoder.pretrained_size) == (96, 96)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), vit.forward_features(pixels.float() / 127.5 - 1))
    smaller = mpp.load_encoder(tmp_path, image_size=64)
    assert (smaller.image_size, smaller.pretrained_size) == (64, 96)


def test_a_trained_step_exports_and_timm_reloads_the_same_features(family, tmp_path):
    objective = build(family)
    before = {name: value.clone() for name, value in family.vit.state_dict().items()}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    try:
        objective(family.pixels, samples=torch.arange(3)).loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters() if parameter.requires_grad)
        optimizer.step()
        save_encoder(family.encoder, tmp_path)
        reloaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        again = mpp.load_encoder(tmp_path).eval()
        images = family.encoder.normalize(family.pixels)
        with torch.no_grad():
            features = family.vit(images)
            assert not torch.equal(features, 0 * features)
            assert torch.equal(reloaded(images), features)
            assert torch.equal(reloaded.forward_features(images), family.vit.forward_features(images))
            assert torch.equal(again.pooled(again(family.pixels)), features)
    finally:
        family.vit.load_state_dict(before)
        objective.zero_grad()
