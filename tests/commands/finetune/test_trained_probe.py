"""The linear layer trained as in MAE: the encoder stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mpp
from mpp.encoder.create import cut_after
from mpp.encoder.export import save_encoder
from mpp.evaluation.features import EncoderReader, FeatureLayer
from mpp.objective.classification import LinearProbe
from tests.support.downstream import TEST, crops, final_weights, good, refused, results, tinted
from tests.support.looking import Finetune, by_timm

LARS = (
    "objective={kind: linear_probe}", "optimizer={name: lars, arguments: {momentum: 0.9, trust_coeff: 0.001, "
    "always_adapt: true}, lr: 0.1, lr_scaling: linear, weight_decay: 0, warmup: {steps: 2}}", "training.clip_grad=null",
)  # fmt: skip


def test_the_linear_probe_leaves_the_encoder_as_it_is_and_timm_reads_its_classifier(
    finetune: Finetune, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    good(finetune(f"encoder={pretrained}", *LARS, "encoder.drop_path=0.3", "encoder.attention=fused"))
    run = tmp_path / "run"
    before = load_file(pretrained / "encoder" / "model.safetensors")
    trained = load_file(final_weights(run, 12))
    for name, value in before.items():
        assert torch.equal(trained[f"encoder.vit.{name}"], value), name
        assert torch.equal(load_file(run / "encoder" / "model.safetensors")[name], value), name
    pixels, labels = crops(tinted_images / "test.parquet")
    objective = LinearProbe(mpp.load_encoder(pretrained), 3).eval()
    objective.load_state_dict(trained)
    with torch.no_grad():
        expected = objective(pixels, labels=torch.tensor(labels)).logits
    logits = by_timm(run, pixels)
    assert (logits - expected).abs().max() < 1e-5
    assert expected.std() > 1e-3
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert round(results(run)["test"]["accuracy"] * TEST) == int((expected.argmax(1) == torch.tensor(labels)).sum())


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_after_a_block_it_learns_on_that_block_s_features(
    finetune: Finetune, pretrained: Path, tinted_images: Path, tmp_path: Path, pool: str
):
    good(finetune(f"encoder={pretrained}", *LARS, "objective.block=1", f"encoder.pool={pool}"))
    pixels, labels = crops(tinted_images / "test.parquet")
    reader = EncoderReader(mpp.load_encoder(pretrained))
    with torch.no_grad():
        features = reader.read(pixels, [FeatureLayer(1, pool)])[FeatureLayer(1, pool)]
    trained = load_file(final_weights(tmp_path / "run", 12))
    norm = {name: trained[f"head.0.{name}"] for name in ("running_mean", "running_var")}
    scaled = (features - norm["running_mean"]) / (norm["running_var"] + 1e-6).sqrt()
    expected = scaled @ trained["head.1.weight"].T + trained["head.1.bias"]
    logits = by_timm(tmp_path / "run", pixels)
    assert (logits - expected).abs().max() < 1e-5
    assert expected.std() > 1e-3
    right = int((expected.argmax(1) == torch.tensor(labels)).sum())
    assert round(results(tmp_path / "run")["test"]["accuracy"] * TEST) == right
    assert not any(name.startswith("encoder.vit.blocks.1.") for name in trained)


def test_a_block_that_is_not_there_is_refused(finetune: Finetune, pretrained: Path):
    refused(finetune(f"encoder={pretrained}", *LARS, "objective.block=3"), "objective.block", "has 2")


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_a_cut_encoder_is_timm_s_with_fewer_blocks(name: str, tmp_path: Path):
    size = 56 if "14" in name else 64
    encoder = mpp.create_encoder(name, image_size=size, depth=3)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    reader = EncoderReader(encoder.eval())
    with torch.no_grad():
        expected = reader.read(pixels, [FeatureLayer(2, "avg")])[FeatureLayer(2, "avg")]
        cut_after(encoder, 2)
        save_encoder(encoder, tmp_path / "cut")
        tokens = mpp.load_encoder(tmp_path / "cut").eval()(pixels)
        assert torch.equal(tokens, encoder(pixels))
        mean = tokens[:, encoder.layout.num_prefix_tokens :].mean(1)
        mean = encoder.vit.fc_norm(mean) if hasattr(encoder.vit, "fc_norm") else mean
    assert torch.equal(mean, expected)


def test_the_linear_probe_s_head_is_mae_s():
    encoder = mpp.create_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4)
    torch.manual_seed(0)
    objective = LinearProbe(encoder, 400)
    assert isinstance(objective.head, torch.nn.Sequential)
    norm, linear = objective.head
    assert isinstance(norm, torch.nn.BatchNorm1d)
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not linear.bias.any()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    objective.train()
    assert norm.training
    assert not any(module.training for module in encoder.modules())


def test_the_linear_probe_on_a_cnn_leaves_its_running_statistics_alone(finetune: Finetune, tmp_path: Path):
    good(finetune(*LARS, "encoder={name: test_resnet}", "data.image_size=20", "training.duration.steps=3"))
    tensors = load_file(tmp_path / "run" / "encoder" / "model.safetensors")
    counted = [value for name, value in tensors.items() if name.endswith("num_batches_tracked")]
    assert counted
    assert not any(counted)


def test_a_single_class_is_refused(finetune: Finetune, tmp_path: Path):
    import datasets

    (tmp_path / "one").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["only"])})
    for split in ("train", "test"):
        images = [{"bytes": content, "path": name} for name, content in tinted(20, 2)]
        table = datasets.Dataset.from_dict({"image": images, "label": [0] * 20}, features=features)
        table.to_parquet(str(tmp_path / "one" / f"{split}.parquet"))
    refused(finetune(f"data.source={tmp_path / 'one'}"), "single class")
