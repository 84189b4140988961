"""The loop's promises that need no kill: accumulation, optimisers, trackers, a full disk, compilation, learning."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm import optim
from torch import nn

import mpp
from mpp.settings import Duration
from mpp.training.checkpoint import Checkpoints
from mpp.training.distributed import precision
from mpp.training.flops import flops_per_image
from mpp.training.optimizer import learning_rate, make_optimizer
from mpp.training.settings import ComputeSettings, OptimizerSettings
from tests.support.forkserver import Command, ForkServer, good, refused
from tests.support.runs import RECIPES


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Schedule and durations


@pytest.mark.parametrize(
    ("duration", "steps"),
    [({"steps": 7}, 7), ({"images": 100}, 4), ({"images": 96}, 3), ({"epochs": 1}, 4), ({"epochs": 2.5}, 8),
     ({"images": 0}, 0)],
)  # fmt: skip
def test_steps_are_images_over_batch_size_rounded_up(duration: dict[str, float], steps: int):
    assert Duration(**duration).in_steps(batch_size=32, rows=100) == steps


def test_the_cosine_schedule_is_the_paper_s():
    settings = OptimizerSettings(lr=0.1, lr_scaling="linear", base_batch_size=256)
    lr = learning_rate(settings, steps=110, warmup=10, batch_size=512)
    assert [lr(step) for step in range(10)] == pytest.approx([0.2 * (step + 1) / 10 for step in range(10)])
    for step in range(10, 110):
        assert lr(step) == pytest.approx(0.1 * (1 + math.cos(math.pi * (step - 10) / 100)))
    linear = learning_rate(OptimizerSettings(lr=1, schedule="linear", final_lr=0.1), steps=10, warmup=0, batch_size=8)
    assert [linear(step) for step in (0, 5)] == pytest.approx([1, 0.55])


SHAPES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: math.cos(math.pi * done / 2) ** 2,
}
"""What is left of the fall from the peak, when so much of the way is done."""


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup", [0, 1, 7, 29])
@pytest.mark.parametrize("schedule", SHAPES)
def test_the_learning_rate_is_the_schedule_s_formula_at_every_step(schedule: str, warmup: int, final: float):
    count, peak = 30, 0.25
    lr = learning_rate(
        OptimizerSettings(lr=peak, schedule=schedule, final_lr=final),  # pyright: ignore[reportArgumentType]
        steps=count,
        warmup=warmup,
        batch_size=8,
    )
    rise = [peak * step / warmup for step in range(1, warmup + 1)]
    shape, end = SHAPES[schedule], final * peak
    fall = [end + (peak - end) * shape((step - warmup) / (count - warmup)) for step in range(warmup, count)]
    assert [lr(step) for step in range(count)] == pytest.approx(rise + fall, rel=1e-12, abs=1e-15)


def test_the_constant_schedule_stays_at_the_peak_from_the_warm_up_to_the_end():
    lr = learning_rate(OptimizerSettings(lr=3e-4, schedule="constant"), steps=50, warmup=5, batch_size=8)
    assert {lr(step) for step in range(4, 50)} == {3e-4}
    assert all(lr(step) < lr(step + 1) for step in range(4))


@pytest.mark.parametrize("schedule", SHAPES)
@pytest.mark.parametrize(("scaling", "power"), [("none", 0), ("sqrt", 0.5), ("linear", 1)])
@pytest.mark.parametrize(("batch", "base"), [(8, 256), (96, 256), (256, 256), (1024, 256), (8, 1), (100, 300)])
def test_scaling_multiplies_every_step_by_a_power_of_the_batch_over_its_base(
    schedule: str, scaling: str, power: float, batch: int, base: int
):
    settings: dict[str, Any] = {"lr": 0.02, "schedule": schedule, "final_lr": 0.05}
    place = {"steps": 12, "warmup": 3, "batch_size": batch}
    plain = learning_rate(OptimizerSettings(**settings), **place)
    scaled = learning_rate(OptimizerSettings(**settings, lr_scaling=scaling, base_batch_size=base), **place)  # pyright: ignore[reportArgumentType]
    factor = (batch / base) ** power
    assert [scaled(step) for step in range(12)] == pytest.approx([factor * plain(step) for step in range(12)])


# Optimisers


def small_objective(pool: str = "token") -> mpp.MaskedPatchPrediction:
    torch.manual_seed(0)
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, reg_tokens=2, pool=pool
    )
    return mpp.MaskedPatchPrediction(encoder)


def test_biases_norms_positions_and_tokens_do_not_decay():
    objective = small_objective()
    optimizer = make_optimizer(objective, OptimizerSettings(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    decays = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert decays | spared == set(names.values())
    assert all(group["weight_decay"] in (0, 0.3) for group in optimizer.param_groups)
    assert {"mask_token", "encoder.vit.pos_embed", "encoder.vit.cls_token", "encoder.vit.reg_token"} <= spared
    matrices = {
        name for name, p in objective.named_parameters() if p.ndim > 1 and "token" not in name and "pos" not in name
    }
    assert decays == matrices


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for step in range(count):
        torch.manual_seed(step)  # as the loop does
        pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
        module(pixels, torch.arange(4)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


NOT_HERE = ("bnb", "fused", "adahessian", "kron")
"""Optimisers of other packages, one of second order, and one that compiles its steps, for minutes."""


KNOWN = [str(name) for name in optim.list_optimizers()]  # pyright: ignore[reportPrivateImportUsage]


CAUTIOUS = {name for name in KNOWN if name[0] == "c" and name[1:] in KNOWN}
"""Twins of others, with the same state."""


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in CAUTIOUS and not name.startswith(NOT_HERE)])
def test_every_optimiser_of_timm_comes_back_from_a_checkpoint_bit_for_bit(tmp_path: Path, name: str):
    decay = 0.0 if name == "adam" else 0.05
    settings = OptimizerSettings(name=name, lr=1e-3, weight_decay=decay)
    straight = small_objective()
    optimizer = make_optimizer(straight, settings)
    steps(straight, optimizer, 1, seed=1)
    Checkpoints(tmp_path, keep=2).save(3, straight, optimizer, {})
    steps(straight, optimizer, 2, seed=2)

    resumed = small_objective()
    checkpoint = Checkpoints(tmp_path, keep=2).newest()
    assert checkpoint is not None
    optimizer = make_optimizer(resumed, settings)
    checkpoint.load_into(resumed, optimizer)
    steps(resumed, optimizer, 2, seed=2)
    for (key, left), right in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right), key


@pytest.mark.parametrize(("name", "words"), [("adahessian", "gradients of gradients"), ("bnbadam", "cannot be made")])
def test_optimisers_that_this_loop_cannot_drive_are_refused(name: str, words: str):
    with pytest.raises(ValueError, match=words):
        make_optimizer(small_objective(), OptimizerSettings(name=name, weight_decay=0))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every file, the folder of the draft, the new name, in this order."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"{self.name} to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    objective = small_objective()
    Checkpoints(tmp_path / "all", keep=2).save(1, objective, make_optimizer(objective, OptimizerSettings()), {})
    files = ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    draft = ".draft-000000001"
    assert done == [*files, draft, f"{draft} to step-000000001", "all"]


def test_betas_are_refused_by_an_optimiser_without_moments_and_taken_by_one_with_them():
    with pytest.raises(ValueError, match=r"betas \[0\.8, 0\.95\] do not fit sgd"):
        make_optimizer(small_objective(), OptimizerSettings(name="sgd", betas=(0.8, 0.95)))
    make_optimizer(small_objective(), OptimizerSettings(name="sgd"))
    for name in ("adamw", "lion", "nadamw"):
        optimizer = make_optimizer(small_objective(), OptimizerSettings(name=name, betas=(0.8, 0.95)))
        assert {tuple(group["betas"]) for group in optimizer.param_groups} == {(0.8, 0.95)}


# Whole runs


def test_four_times_sixteen_accumulated_is_one_times_sixty_four(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path
):
    for micro in (64, 16):
        command = commands.run(
            "mpp.pretrain", tiny_recipe, f"output_dir={tmp_path / str(micro)}", "training.batch_size=64",
            f"training.micro_batch_size={micro}", "encoder.arguments={embed_dim: 32, depth: 2, num_heads: 2}",
        )  # fmt: skip
        assert command.code == 0, command.text
    one, four = (lines(tmp_path / str(micro)) for micro in (64, 16))
    assert len(one) == 12
    for left, right in zip(one, four, strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-6)
        assert right["gradient_norm"] == pytest.approx(left["gradient_norm"], rel=1e-4)


def spied(command: Command) -> dict[str, int]:
    assert command.code == 0, command.text
    return json.loads(command.text.splitlines()[-1])


def test_gradient_checkpointing_goes_through_every_block_twice_and_changes_nothing_but_memory(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path
):
    for switch, times in (("false", 1), ("true", 2)):
        changes = (f"training.gradient_checkpointing={switch}", f"output_dir={tmp_path / switch}")
        assert (
            spied(commands.run("tests.support.spied", "mpp.pretrain", tiny_recipe, *changes))["blocks"]
            == 12 * 2 * times
        )
    losses = [[line["loss"] for line in lines(tmp_path / switch)] for switch in ("false", "true")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_what_is_learnt_in_a_step_is_clipped(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    """With plain gradient descent the way from one checkpoint to the next is rate × clip, whatever the gradient."""
    plain = "optimizer={name: sgd, arguments: {momentum: 0, nesterov: false}, lr: 0.5, schedule: constant}"
    changes = ("training.clip_grad=0.05", "training.duration.steps=3", "checkpoint={every: {steps: 1}, keep: 9}")
    changes += ("optimizer.weight_decay=0",)
    assert commands.run("mpp.pretrain", tiny_recipe, plain, *changes).code == 0
    kept = [load_file(tmp_path / f"run/checkpoints/step-{step:09d}/weights.safetensors") for step in (1, 2, 3)]
    for line, before, after in zip(lines(tmp_path / "run")[1:], kept, kept[1:], strict=False):
        assert line["gradient_norm"] > 0.1, "it had to be clipped"
        way = math.sqrt(sum(float((after[name].double() - before[name].double()).square().sum()) for name in after))
        assert way == pytest.approx(0.5 * 0.05, rel=1e-4)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor says what it can do on Linux alone")
def test_the_precision_is_bfloat16_where_the_processor_has_instructions_for_it():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    able = bool({"avx512_bf16", "amx_bf16"} & flags)
    assert precision(ComputeSettings()) == ("bfloat16" if able else "float32")
    assert [precision(ComputeSettings(precision=name)) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_operations_are_those_counted_by_hand():
    """Two a multiplication and addition; the backward pass takes twice the forward's, but for the pixels' gradient."""
    torch.manual_seed(0)
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2
    )
    encoder.use_fused_attention(False)
    objective = mpp.MaskedPatchPrediction(encoder)
    patches, tokens, width, corrupted = 16, 17, 32, 8
    embedding = 2 * patches * (3 * 4 * 4) * width
    linear = 2 * tokens * width * (3 + 1 + 4 + 4) * width  # to q, k and v, out of them, and the two of the MLP
    attention = 2 * (2 * tokens * tokens * width)
    head = 2 * corrupted * width * 512
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert flops_per_image(objective, pixels, None) == 3 * (embedding + linear + attention + head) - embedding


def test_tensorboard_gets_what_the_journal_gets(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    good(commands.run("mpp.pretrain", tiny_recipe, "journal.trackers=[tensorboard]"))
    events = next(path for path in (tmp_path / "run").rglob("events.out.tfevents*") if path.parent.name == "mpp")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    written = {event.step: event.value for event in board.Scalars("loss")}
    assert written == pytest.approx({line["step"]: line["loss"] for line in lines(tmp_path / "run")}, rel=1e-6)
    assert "validation/loss_mask" in board.Tags()["scalars"]


def test_an_unknown_tracker_is_refused_with_the_known_ones(commands: ForkServer, tiny_recipe: Path):
    command = commands.run("mpp.pretrain", tiny_recipe, "journal.trackers=[tensorbord]")
    refused(command, "tensorbord unknown; Accelerate has", "tensorboard")


def test_a_warm_up_as_long_as_the_run_is_shortened_with_a_word(commands: ForkServer, tiny_recipe: Path):
    command = commands.run("mpp.pretrain", tiny_recipe, "optimizer.warmup.steps=50", "training.duration.steps=20")
    assert "optimizer.warmup of 50 steps is as long as the run; it is shortened to 2" in good(command).text


def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path: Path):
    objective = small_objective()
    optimizer = make_optimizer(objective, OptimizerSettings())
    checkpoints = Checkpoints(tmp_path, keep=2)
    steps(objective, optimizer, 1, seed=0)
    first = checkpoints.save(1, objective, optimizer, {"good": True})
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RuntimeError, match=r"step 2 could not be written[\s\S]*step-000000001 is intact"):
            checkpoints.save(2, objective, optimizer, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_training_is_one_graph_with_the_same_loss(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    for name in ("false", "true"):
        command = commands.run(
            "tests.support.spied", "mpp.pretrain", tiny_recipe,
            f"training.compile={name}", f"output_dir={tmp_path / name}",
            "encoder.arguments={embed_dim: 32, depth: 1, num_heads: 2}", "training.duration.steps=4",
        )  # fmt: skip
        found = spied(command)
        assert (found["graphs"] > 0) == (name == "true")
        assert found["breaks"] == 0
    eager, compiled = ([line["loss"] for line in lines(tmp_path / name)] for name in ("false", "true"))
    assert compiled == pytest.approx(eager, rel=1e-4)
    names = [set(load_file(tmp_path / name / "encoder" / "model.safetensors")) for name in ("false", "true")]
    assert names[0] == names[1]


def test_the_model_learns_more_than_histogram_and_neighbours_know(commands: ForkServer, tmp_path: Path):
    """By the shipped recipe with patches of 8 pixels, of which an image has so few that 80 steps take seconds."""
    recipe = (RECIPES / "mean_color.yaml", f"output_dir={tmp_path}", "training.duration.steps=80")
    good(commands.run("mpp.pretrain", *recipe, "encoder.patch_size=8", "reconstructions.images=0"))
    last = lines(tmp_path)[-1]
    assert last["validation/loss_mask"] < last["validation/neighbours"] - 0.05
    assert last["validation/neighbours"] < last["validation/histogram"] - 0.5
