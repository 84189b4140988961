"""Promise 1: a run that was killed at any moment and started again ends with the same weights as one that was not."""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests.forkserver import Command, ForkServer
from tests.runs import Process, launched_twice

STEPS = 90
KILLS = 12


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of the final weights and of the exported encoder."""
    final = run / "checkpoints" / f"step-{STEPS:09d}"
    files = {"weights": final / "weights.safetensors", "optimizer": final / "optimizer.safetensors"}
    files["encoder"] = run / "encoder" / "model.safetensors"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def metrics(run: Path) -> list[dict[str, float]]:
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
    """SIGKILL while a checkpoint is being written: its draft is there before and after."""
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


def test_two_processes_killed_together_resume_bit_for_bit(tiny_recipe: Path, tmp_path: Path):
    """More than one of DDP's buckets, so that the order in which they are reduced shows in the bits."""
    model = "encoder.arguments={embed_dim: 160, depth: 3, num_heads: 2, drop_path_rate: 0.1}"
    settings = [str(tiny_recipe), model, f"training.duration.steps={STEPS}", "checkpoint.every.steps=10"]

    def started(run: Path) -> Process:
        return Process([*launched_twice(), *settings, f"output_dir={run}"], tmp_path)

    straight, broken = started(tmp_path / "straight"), started(tmp_path / "broken")
    broken.until(lambda: (tmp_path / "broken" / "checkpoints" / "step-000000030").is_dir())
    broken.kill()  # the launcher and both of its processes
    steps = [int(step) for step in re.findall(rf"^step +(\d+)/{STEPS}", broken.output, re.MULTILINE)]
    assert 30 <= steps[-1] < STEPS
    again = started(tmp_path / "broken")
    assert straight.wait() == 0, straight.output
    assert again.wait() == 0, again.output
    assert "2 × cpu" in again.output
    assert fingerprint(tmp_path / "broken") == fingerprint(tmp_path / "straight")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")
