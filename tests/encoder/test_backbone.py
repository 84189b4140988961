"""Networks without patches: the baselines of classification, by the same commands and files."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import mpp
from mpp.encoder.backbone import Backbone
from mpp.encoder.create import create_backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.export import save_encoder
from mpp.encoder.settings import EncoderSettings
from mpp.objective.classification import SupervisedClassification
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import OptimizerSettings
from tests.support.forkserver import Command, ForkServer
from tests.support.reference import random_pixels
from tests.support.runs import free_port

FAMILIES = [  # name, image size, length of its feature
    ("resnet18", 40, 512),
    ("test_resnet", 20, 96),
    ("test_convnext", 48, 64),
    ("test_efficientnet", 33, 256),
    ("test_nfnet", 32, 192),
    ("test_maxvit", 64, 128),  # its weights depend on the image size
    ("pit_ti_224", 32, 256),  # patches, but fewer at its end
]
STATISTIC = re.compile("running_|num_batches_tracked")
SUPERVISED = ("objective.kind=supervised", "encoder={name: test_resnet}", "reconstructions.images=0")


def built(name: str, size: int) -> Backbone:
    torch.manual_seed(0)
    return EncoderSettings(name=name).build(size)


def trained(backbone: Backbone, size: int, steps: int = 2) -> SupervisedClassification:
    """A classifier after a few steps, so that batch norm has something to remember."""
    objective = SupervisedClassification(backbone, 3).train()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        objective(random_pixels(4, size, step), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
    return objective.eval()


@pytest.fixture(scope="module", params=FAMILIES, ids=[name for name, *_ in FAMILIES])
def family(request: pytest.FixtureRequest) -> tuple[SupervisedClassification, Any, int, int]:
    name, size, width = request.param
    backbone = built(name, size)
    return trained(backbone, size), backbone, size, width


def test_the_feature_is_timm_s_own(family: tuple[Any, Backbone, int, int]):
    _, backbone, size, width = family
    assert not isinstance(backbone, Encoder)
    assert (backbone.width, backbone.image_size) == (width, size)
    pixels = random_pixels(3, size)
    mean = std = torch.full((3, 1, 1), 0.5)
    with torch.no_grad():
        feature = backbone.pooled(backbone(pixels))
        assert feature.shape == (3, width)
        assert torch.equal(feature, backbone.model((pixels.float() / 255 - mean) / std))
    own = timm.create_model(backbone.name, num_classes=0, **backbone.arguments)
    assert type(own) is type(backbone.model)
    assert list(own.state_dict()) == list(backbone.model.state_dict())


def test_every_parameter_gets_a_gradient_and_what_does_not_decay_is_named(family: tuple[Any, Backbone, int, int]):
    objective, _, size, _ = family
    objective.zero_grad()
    objective(random_pixels(2, size), labels=torch.tensor([0, 2])).loss.backward()
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    names = dict(objective.named_parameters())
    assert objective.no_weight_decay() <= set(names)
    optimizer = make_optimizer(objective, OptimizerSettings(weight_decay=0.1))
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups if group["weight_decay"]]
    decays = {name for name, p in names.items() if any(id(p) in group for group in groups)}
    assert {"head.weight"} <= decays
    assert all(names[name].ndim > 1 and "pos_embed" not in name and "cls_token" not in name for name in decays)


def test_export_reloads_in_timm_and_here_to_the_last_bit(family: tuple[Any, Backbone, int, int], tmp_path: Path):
    _, backbone, size, width = family
    save_encoder(backbone, tmp_path)
    in_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    here = mpp.load_encoder(tmp_path).eval()
    tuned = EncoderSettings(source=str(tmp_path)).build(size).eval()
    assert type(here) is type(tuned) is Backbone
    assert (here.width, here.image_size, here.name) == (width, size, backbone.name)
    pixels = random_pixels(3, size, 7)
    with torch.no_grad():
        feature = backbone.pooled(backbone(pixels))
        assert torch.equal(in_timm(backbone.normalize(pixels)), feature)
        for again in (here, tuned):
            assert torch.equal(again.pooled(again(pixels)), feature)
    for name, saved in backbone.model.state_dict().items():
        assert torch.equal(in_timm.state_dict()[name], saved), name
        assert torch.equal(here.model.state_dict()[name], saved), name


def test_running_statistics_are_part_of_what_is_exported(tmp_path: Path):
    backbone = built("test_resnet", 20)
    trained(backbone, 20, steps=3)
    save_encoder(backbone, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    norms = {name: module for name, module in backbone.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms
    for name, norm in norms.items():
        assert torch.equal(tensors[f"{name}.running_mean"], norm.running_mean)
        assert norm.running_mean.abs().max() > 0
        assert tensors[f"{name}.num_batches_tracked"] == 3


def test_a_model_with_patches_is_still_an_encoder_with_its_own_keys(tmp_path: Path):
    settings = EncoderSettings(name="test_vit", patch_size=4, pool="avg")
    torch.manual_seed(0)
    encoder = settings.build(16)
    torch.manual_seed(0)
    same = settings.build(16, needs_patches=True)
    assert type(encoder) is type(same) is Encoder
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), same.state_dict().values(), strict=True)
    )
    assert encoder.model is encoder.vit
    keys = [f"encoder.vit.{name}" for name in encoder.vit.state_dict()]
    assert [*keys, "head.weight", "head.bias"] == list(SupervisedClassification(encoder, 3).state_dict())
    assert (encoder.image_size, encoder.width) == (encoder.layout.image_size, encoder.layout.width)
    save_encoder(encoder, tmp_path)
    assert type(mpp.load_encoder(tmp_path)) is Encoder


def test_the_image_size_may_change_between_pretraining_and_fine_tuning(tmp_path: Path):
    backbone = built("test_resnet", 20)
    trained(backbone, 20)
    save_encoder(backbone, tmp_path)
    larger = mpp.load_encoder(tmp_path, image_size=52).eval()
    assert larger.image_size == 52
    pixels = random_pixels(2, 52)
    with torch.no_grad():
        assert torch.equal(larger.pooled(larger(pixels)), backbone.model(backbone.normalize(pixels)))
    with pytest.raises(ValueError, match=r"\(b, 3, 52, 52\), found \(2, 3, 20, 20\)"):
        larger(random_pixels(2, 20))


def test_masked_patch_prediction_refuses_what_has_no_patches(tmp_path: Path):
    backbone = built("test_resnet", 20)
    with pytest.raises(ValueError, match="masked patch prediction needs patches, and test_resnet has none"):
        mpp.MaskedPatchPrediction(backbone)
    save_encoder(backbone, tmp_path)
    refusal = r"test_resnet cannot be used here: it has no patch embedding; use a Vision Transformer"
    for settings in (EncoderSettings(name="test_resnet", patch_size=4), EncoderSettings(source=str(tmp_path))):
        with pytest.raises(ValueError, match=refusal):
            settings.build(20, needs_patches=True)


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        ({"name": "resnet18", "patch_size": 4}, 32, "patch_size 4 cannot be set for resnet18, which has no patches"),
        ({"name": "resnet18", "pool": "token"}, 32, "timm cannot build resnet18 with global_pool='token'"),
        ({"name": "resnet18", "arguments": {"img_size": 32}}, 32, "arguments cannot hold img_size"),
        ({"name": "resnet18", "arguments": {"depht": 3}}, 32, "timm cannot build resnet18 with depht=3"),
        ({"name": "inception_v3"}, 32, "inception_v3 cannot be used here: images of 32 px do not go through it"),
        ({"name": "vit_tiny_patch16_224"}, 50, "image_size 50 is not a multiple of the patch size 16"),
        ({"name": "vit_tiny_patch16_224", "arguments": {"patch_drop_rate": 0.5}}, 32, "or patches are dropped"),
        ({"name": "resnet1"}, 32, "has no model 'resnet1'; did you mean"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(settings: dict[str, Any], size: int, words: str):
    with pytest.raises(ValueError, match=words.replace("'", "['\"]")):
        EncoderSettings(**settings).build(size)


def test_a_pool_can_be_chosen_where_timm_has_it():
    other = create_backbone("test_resnet", image_size=20, pool="avg", mean=(0.1, 0.2, 0.3))
    assert other.arguments == {"global_pool": "avg"}
    assert other.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_gradient_checkpointing_is_refused_by_name_where_timm_has_none():
    backbone = built("test_resnet", 20)
    backbone.use_gradient_checkpointing()
    assert backbone.model.grad_checkpointing
    with pytest.raises(ValueError, match="timm has no gradient checkpointing for dla46_c"):
        built("dla46_c", 32).use_gradient_checkpointing()


NAMES = {"vit_tiny_patch16_224": 48, "deit_tiny_distilled_patch16_224": 48, "eva02_tiny_patch14_224": 56}


@pytest.mark.parametrize(("name", "size"), NAMES.items())
def test_the_residual_stream_is_of_its_type_under_autocast_alone(name: str, size: int):
    backbone, plain = built(name, size), built(name, size)
    plain.load_state_dict(backbone.state_dict())
    backbone.use_bfloat16_residual()
    seen: dict[str, set[torch.dtype]] = {"with": set(), "without": set()}
    for which, network in (("with", backbone), ("without", plain)):
        for block in network.model.blocks:
            block.register_forward_hook(lambda module, args, output, which=which: seen[which].add(output.dtype))
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = backbone(pixels).float(), plain(pixels).float()
    assert seen == {"with": {torch.bfloat16}, "without": {torch.float32}}
    assert 0 < (found - expected).abs().max() < 0.2  # of values with a deviation of 1
    assert torch.equal(backbone(pixels), plain(pixels))  # in float32 nothing is rounded


def test_a_bfloat16_residual_is_refused_by_name_where_there_is_none():
    with pytest.raises(ValueError, match=r"resnet18.*training\.residual=float32"):
        built("resnet18", 32).use_bfloat16_residual()


# Whole runs


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def files(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / "model.safetensors")


def good(command: Command) -> Command:
    assert command.code == 0, command.text
    assert "Traceback" not in command.text
    return command


def test_a_cnn_trains_resumes_bit_for_bit_and_is_fine_tuned(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    run = tmp_path / "run"
    begun = good(commands.run("mpp.pretrain", tiny_recipe, *SUPERVISED))
    assert "test_resnet, 0.4 M parameters, 16 px\n" in begun.text
    assert all(math.isfinite(line["loss"]) for line in lines(run) if "loss" in line)
    assert files(run)["bn1.num_batches_tracked"] == 12  # neither counting operations nor validation adds to it

    straight, looked = files(run), lines(run)[-1]
    shutil.rmtree(run / "checkpoints" / "step-000000012")
    shutil.rmtree(run / "encoder")
    assert "from step 8" in good(commands.run("mpp.pretrain", tiny_recipe, *SUPERVISED)).text
    resumed = files(run)
    assert all(torch.equal(resumed[name], saved) for name, saved in straight.items())
    again = lines(run)[-1]
    assert again["validation/loss"] == looked["validation/loss"]

    reloaded = timm.create_model(f"local-dir:{run / 'encoder'}", pretrained=True).eval()
    here = mpp.load_encoder(run).eval()
    pixels = random_pixels(2, 16)
    with torch.no_grad():
        assert torch.equal(reloaded(here.normalize(pixels)), here.pooled(here(pixels)))

    start = [f"output_dir={tmp_path / 'tuned'}", f"encoder={{source: {run}}}", "data.image_size=24"]
    tuned = good(commands.run("mpp.pretrain", tiny_recipe, *SUPERVISED[::2], *start, "optimizer.lr=1e-30"))
    assert "test_resnet, 0.4 M parameters, 24 px (made for 16)\n" in tuned.text
    after = files(tmp_path / "tuned")
    assert all(torch.equal(after[name], saved) for name, saved in straight.items() if not STATISTIC.search(name))
    assert after["bn1.num_batches_tracked"] == 24


def test_a_cnn_is_refused_for_masked_patches_with_one_message(commands: ForkServer, tiny_recipe: Path):
    command = commands.run("mpp.pretrain", tiny_recipe, "encoder={name: test_resnet}")
    assert command.code == 2
    told = " ".join(command.text.split())
    assert "test_resnet cannot be used here: it has no patch embedding; use a Vision Transformer" in told
    assert "Traceback" not in command.text


def test_two_processes_judge_the_statistics_that_are_saved(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    """Each process normalises by its own images; what they look at together is the main process's model."""
    port = free_port()
    run, settings = tmp_path / "run", [*SUPERVISED, "training.micro_batch_size=8", "training.threads=1"]

    def train() -> None:
        both = [
            commands.start("mpp.pretrain", tiny_recipe, *settings, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank,
                           MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true")
            for rank in "01"
        ]  # fmt: skip
        for command in both:
            command.wait()
            good(command)

    train()
    straight, looked = files(run), lines(run)[-1]
    shutil.rmtree(run / "checkpoints" / "step-000000012")
    train()
    assert all(torch.equal(files(run)[name], saved) for name, saved in straight.items())
    assert lines(run)[-1]["validation/loss"] == looked["validation/loss"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("vit_tinny", "vit_tiny_patch16_224"),
        ("vit_tiny_patch16", "vit_tiny_patch16_224"),
        ("vit_smal_patch16_224", "vit_small_patch16_224"),
        ("deit_tinny", "deit_tiny_patch16_224"),
        ("resnet81", "resnet18"),
    ],
)
def test_a_misspelt_name_is_answered_with_its_own_family_first(written: str, meant: str):
    with pytest.raises(ValueError, match=f"has no model '{written}'; did you mean {meant}"):
        mpp.create_encoder(written)
