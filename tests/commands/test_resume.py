"""Promise 1: a run that was killed at any moment and started again ends with the same weights as one that was not."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.support.downstream import as_two, start_two
from tests.support.forkserver import Command, ForkServer
from tests.support.runs import free_port

STEPS = 90
KILLS = 10


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of the final weights and of the exported encoder."""
    final = run / "checkpoints" / f"step-{STEPS:09d}"
    files = {"weights": final / "weights.safetensors", "optimizer": final / "optimizer.safetensors"}
    files["encoder"] = run / "encoder" / "model.safetensors"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The journal without what a clock says."""
    timed = ("seconds", "images_per_second", "tflops", "share_of_peak")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def steps_said(command: Command) -> list[int]:
    return [int(step) for step in re.findall(rf"^step +(\d+)/{STEPS}", command.text, re.MULTILINE)]


def kill_in_a_step(command: Command, rng: random.Random) -> None:
    """SIGKILL at a random moment, when at least one step of this very process is done and not all are."""
    wanted = rng.randint(1, 5)
    while len(steps_said(command)) < wanted:
        assert command.alive, command.text
        time.sleep(0.002)
    time.sleep(rng.random() * 0.03)
    command.kill()


def kill_in_a_save(command: Command, run: Path) -> None:
    """SIGKILL while a checkpoint is being written: its draft is there before and after.

    What an earlier kill left behind is gone once this process has done a step.
    """
    while not steps_said(command):
        assert command.alive, command.text
        time.sleep(0.002)
    while not any((run / "checkpoints").glob(".draft-*/*.safetensors")):
        assert command.alive, command.text
        time.sleep(0.0002)
    command.kill()


@pytest.fixture(scope="module")
def arguments() -> list[str]:
    return [f"training.duration.steps={STEPS}", "checkpoint.every.steps=3", "validation.every.steps=30"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_many_times_ends_with_the_same_bits(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path, arguments: list[str], workers: int
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    command = commands.run("mpp.pretrain", tiny_recipe, f"output_dir={straight}", f"data.workers={workers}", *arguments)
    assert command.code == 0, command.text

    rng = random.Random(workers)
    kills, in_a_save = 0, 0
    while kills < KILLS:
        command = commands.start(
            "mpp.pretrain", tiny_recipe, f"output_dir={broken}", f"data.workers={workers}", *arguments
        )
        if kills % 3 == 2:
            kill_in_a_save(command, broken)
        else:
            kill_in_a_step(command, rng)
        command.wait()
        assert command.code is None, "it was over before the kill"
        steps = steps_said(command)
        assert not steps or steps[-1] < STEPS
        in_a_save += any((broken / "checkpoints").glob(".draft-*"))
        kills += 1
    command = commands.run("mpp.pretrain", tiny_recipe, f"output_dir={broken}", f"data.workers={workers}", *arguments)
    assert command.code == 0, command.text
    assert in_a_save >= 2, "no kill hit a save"
    assert fingerprint(broken) == fingerprint(straight)
    assert metrics(broken) == metrics(straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path, arguments: list[str], number: signal.Signals
) -> None:
    straight = tmp_path / "straight"
    assert commands.run("mpp.pretrain", tiny_recipe, f"output_dir={straight}", *arguments).code == 0
    command = commands.start("mpp.pretrain", tiny_recipe, *arguments, "data.workers=2")
    while len(steps_said(command)) < 5:
        time.sleep(0.002)
    command.kill(number)
    assert command.wait() == 128 + number, command.text
    stopped = steps_said(command)[-1]
    assert f"stopped after step {stopped} of {STEPS}, saved.\nGive the same command again to go on" in command.text
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped:09d}").is_dir()
    again = commands.run("mpp.pretrain", tiny_recipe, *arguments)
    assert again.code == 0
    assert steps_said(again)[0] == stopped + 1
    assert fingerprint(tmp_path / "run") == fingerprint(straight)


BUCKETS = "encoder.arguments={embed_dim: 160, depth: 3, num_heads: 2, drop_path_rate: 0.1}"
"""More than one of DDP's buckets, so that the order in which they are reduced shows in the bits."""


def test_two_processes_stopped_together_resume_bit_for_bit(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    """SIGKILL hits both; SIGTERM one alone, which takes the other along."""
    changes = (BUCKETS, f"training.duration.steps={STEPS}", "checkpoint.every.steps=10")
    straight, broken = ((tiny_recipe, *changes, f"output_dir={tmp_path / name}") for name in ("straight", "broken"))
    saved = tmp_path / "broken" / "checkpoints"
    for number, since in ((signal.SIGKILL, 20), (signal.SIGTERM, 50)):
        both = start_two(commands, "mpp.pretrain", free_port(), *broken)
        while not (saved / f"step-{since:09d}").is_dir():
            assert all(command.alive for command in both), both[0].text
            time.sleep(0.002)
        for command in both if number == signal.SIGKILL else both[1:]:
            command.kill(number)
        codes = [command.wait() for command in both]
        stopped = steps_said(both[0])[-1]
        assert since <= stopped < STEPS
    assert codes == [143, 143], both[0].text
    assert f"stopped after step {stopped} of {STEPS}, saved." in both[0].text
    assert (saved / f"step-{stopped:09d}").is_dir()
    for arguments in (broken, straight):
        again = as_two(commands, "mpp.pretrain", free_port(), *arguments)
        assert [command.code for command in again] == [0, 0], again[0].text
        assert "2 × cpu" in again[0].text
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")


def test_what_may_change_on_resume_leaves_every_bit_or_every_loss_as_it_was(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path
):
    """Bits with another cache, journal or rhythm of saving; losses up to rounding with another topology."""
    model = "encoder.arguments={embed_dim: 32, depth: 2, num_heads: 2}"  # drop path is drawn by process
    fixed = (tiny_recipe, model, f"training.duration.steps={STEPS}", "validation.every.steps=0")
    straight, broken, other = tmp_path / "straight", tmp_path / "broken", tmp_path / "other"
    assert commands.run("mpp.pretrain", *fixed, f"output_dir={straight}").code == 0
    command = commands.start("mpp.pretrain", *fixed, f"output_dir={broken}")
    while not (broken / "checkpoints" / "step-000000008").is_dir():
        assert command.alive, command.text
        time.sleep(0.002)
    command.kill()
    command.wait()
    shutil.copytree(broken, other)

    changes = ("data.cache=true", "data.workers=1", "journal.every.steps=5", "checkpoint={every: {steps: 7}, keep: 4}")
    again = commands.run("mpp.pretrain", *fixed, *changes, f"output_dir={broken}")
    assert again.code == 0, again.text
    assert "from step" in again.text
    assert fingerprint(broken) == fingerprint(straight)

    changes = ("training.micro_batch_size=4", f"output_dir={other}")
    several = as_two(commands, "mpp.pretrain", free_port(), *fixed, *changes)
    assert [command.code for command in several] == [0, 0], several[0].text
    assert "from step" in several[0].text
    losses = [{m["step"]: m["loss"] for m in metrics(run) if "loss" in m} for run in (other, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # rounding that 90 steps have carried on


def test_a_damaged_image_is_counted_and_named_once_however_often_the_run_is_killed(
    commands: ForkServer, tiny_recipe: Path, tiny_data: Path, tmp_path: Path
):
    rows = datasets.load_dataset(str(tiny_data), split="train").cast_column("image", datasets.Image(decode=False))
    columns: Any = rows.to_dict()
    columns["image"][7]["bytes"] = columns["image"][7]["bytes"][:90]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(columns, features=rows.features).to_parquet(str(tmp_path / "data" / "train.parquet"))
    shutil.copy(tiny_data / "test.parquet", tmp_path / "data")
    settings = [f"data.source={tmp_path / 'data'}", "data.max_bad_share=0.02", f"training.duration.steps={STEPS}"]
    settings += ["checkpoint.every.steps=3"]
    assert commands.run("mpp.pretrain", tiny_recipe, f"output_dir={tmp_path / 'straight'}", *settings).code == 0
    rng = random.Random(5)
    for _ in range(2):
        command = commands.start("mpp.pretrain", tiny_recipe, f"output_dir={tmp_path / 'broken'}", *settings)
        kill_in_a_step(command, rng)
        command.wait()
    assert commands.run("mpp.pretrain", tiny_recipe, f"output_dir={tmp_path / 'broken'}", *settings).code == 0
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")
    named = [line for line in metrics(tmp_path / "broken") if "damaged_images" in line]
    assert len(named) == 1
    assert named[0]["damaged"] == 1
    assert [image["row"] for image in named[0]["damaged_images"]] == [7]
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")


def test_fewer_kept_checkpoints_and_two_damaged_ones_cost_no_good_one(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path
):
    run, arguments = tmp_path / "run", ["training.duration.steps=400", "checkpoint.every.steps=10"]
    command = commands.start("mpp.pretrain", tiny_recipe, *arguments, "checkpoint.keep=3")
    while not (run / "checkpoints" / "step-000000040").is_dir():
        time.sleep(0.002)
    command.kill()
    command.wait()
    newest = sorted((run / "checkpoints").glob("step-*"))[-2:]
    for folder in newest:
        (folder / "weights.safetensors").write_bytes(b"damaged")
    command = commands.start("mpp.pretrain", tiny_recipe, *arguments, "checkpoint.keep=2")
    while not re.findall(r"^step +\d+/400", command.text, re.MULTILINE):
        time.sleep(0.002)
    command.kill(signal.SIGTERM)
    assert command.wait() == 143, command.text
    assert "weights.safetensors is cut" in command.text
    good = [f for f in sorted((run / "checkpoints").glob("step-*")) if (f / "weights.safetensors").stat().st_size > 10]
    assert len(good) >= 2
    again = commands.run("mpp.pretrain", tiny_recipe, *arguments, "checkpoint.keep=2")
    assert again.code == 0, again.text
