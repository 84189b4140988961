"""Promise 1: a run that was killed at any moment and started again ends with the same weights as one that was not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import datasets
import pytest

from mpp.commands.resumptions import resumptions
from tests.support.forkserver import Command, ForkServer, as_two, good, start_two
from tests.support.runs import checkpoints, free_port

STEPS = 40


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


@pytest.fixture
def one_damaged(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny data set; row 7 cannot be decoded."""
    rows = datasets.load_dataset(str(tiny_data), split="train").cast_column("image", datasets.Image(decode=False))
    columns: Any = rows.to_dict()
    columns["image"][7]["bytes"] = columns["image"][7]["bytes"][:90]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(columns, features=rows.features).to_parquet(str(tmp_path / "data" / "train.parquet"))
    shutil.copy(tiny_data / "test.parquet", tmp_path / "data")
    return tmp_path / "data"


MOMENTS = {  # the event before which the command is killed, and how many checkpoints and drafts are there then
    "after a step, before its line is written": ("open", r"metrics\.jsonl a", 5, 1, 0),
    "while a checkpoint is written": ("open", r"\.draft-\d+/state\.json w", 2, 2, 1),
    "when it is whole, before it has its name": ("os.rename", r"\.draft-", 2, 3, 1),
    "when it has its name, before older ones go": ("shutil.rmtree", r"/step-", 2, 4, 0),
}


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path, one_damaged: Path
) -> None:
    """And what it says of a damaged image it says once; loader processes make no difference either."""
    settings = [f"data.source={one_damaged}", "data.max_bad_share=0.02", f"training.duration.steps={STEPS}"]
    settings += ["checkpoint={every: {steps: 4}, keep: 3}", "validation.every.steps=10"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    good(commands.run("mpp.pretrain", tiny_recipe, *settings, f"output_dir={straight}"))

    given = ("mpp.pretrain", tiny_recipe, *settings, f"output_dir={broken}")
    for name, (event, pattern, count, whole, drafts) in MOMENTS.items():
        command = commands.run("tests.support.killed", event, pattern, count, *given)
        assert command.code is None, f"{name}:\n{command.text}"
        assert len(checkpoints(broken)) == whole, name
        assert len(list((broken / "checkpoints").glob(".draft-*"))) == drafts, name
    command = commands.start(*given, "data.workers=2")
    command.until(lambda: len(steps_said(command)) >= 3)
    command.kill()
    command.wait()
    assert command.code is None
    assert steps_said(command)[-1] < STEPS
    again = good(commands.run(*given, "data.workers=2"))

    assert steps_said(again)[0] > 16, "it went on from the last kill"
    starts = [each.step for each in resumptions(broken)]
    assert len(starts) == len(MOMENTS) + 1, "every start after a kill, for the page of the run"
    assert starts == sorted(starts)
    assert starts[-1] == steps_said(again)[0] - 1
    assert resumptions(straight) == []
    assert fingerprint(broken) == fingerprint(straight)
    assert metrics(broken) == metrics(straight)
    [named] = [line for line in metrics(broken) if "damaged_images" in line]
    assert named["damaged"] == 1
    assert [image["row"] for image in named["damaged_images"]] == [7]


BUCKETS = "encoder.arguments={embed_dim: 160, depth: 3, num_heads: 2, drop_path_rate: 0.1}"
"""More than one of DDP's buckets, so that the order in which they are reduced shows in the bits."""


def test_two_processes_stopped_together_resume_bit_for_bit(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    """SIGKILL hits both; SIGTERM one alone, which takes the other along."""
    changes = (BUCKETS, f"training.duration.steps={STEPS}", "checkpoint.every.steps=5")
    straight, broken = ((tiny_recipe, *changes, f"output_dir={tmp_path / name}") for name in ("straight", "broken"))
    saved = tmp_path / "broken" / "checkpoints"
    for number, since in ((signal.SIGKILL, 10), (signal.SIGTERM, 20)):
        both = start_two(commands, "mpp.pretrain", free_port(), *broken)
        both[0].until(lambda since=since: (saved / f"step-{since:09d}").is_dir())
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
    good(commands.run("mpp.pretrain", *fixed, f"output_dir={straight}"))
    command = commands.start("mpp.pretrain", *fixed, f"output_dir={broken}")
    command.until(lambda: (broken / "checkpoints" / "step-000000008").is_dir())
    command.kill()
    command.wait()
    shutil.copytree(broken, other)

    changes = ("data.cache=true", "data.workers=1", "journal.every.steps=5", "checkpoint={every: {steps: 7}, keep: 4}")
    again = good(commands.run("mpp.pretrain", *fixed, *changes, f"output_dir={broken}"))
    assert "from step" in again.text
    assert fingerprint(broken) == fingerprint(straight)

    changes = ("training.micro_batch_size=4", f"output_dir={other}")
    several = as_two(commands, "mpp.pretrain", free_port(), *fixed, *changes)
    assert [command.code for command in several] == [0, 0], several[0].text
    assert "from step" in several[0].text
    losses = [{m["step"]: m["loss"] for m in metrics(run) if "loss" in m} for run in (other, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # rounding that 40 steps have carried on


def test_fewer_kept_checkpoints_and_two_damaged_ones_cost_no_good_one(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path
):
    run, given = tmp_path / "run", ("mpp.pretrain", tiny_recipe, "training.duration.steps=120")
    given += ("checkpoint.every.steps=10",)
    command = commands.start(*given, "checkpoint.keep=3")
    command.until(lambda: (run / "checkpoints" / "step-000000040").is_dir())
    command.kill()
    command.wait()
    for folder in checkpoints(run)[-2:]:
        (folder / "weights.safetensors").write_bytes(b"damaged")
    command = commands.start(*given, "checkpoint.keep=2")
    command.until(lambda: re.findall(r"^step +\d+/120", command.text, re.MULTILINE))
    command.kill(signal.SIGTERM)
    assert command.wait() == 143, command.text
    assert "weights.safetensors is cut" in command.text
    assert len([f for f in checkpoints(run) if (f / "weights.safetensors").stat().st_size > 10]) >= 2
    good(commands.run(*given, "checkpoint.keep=2"))
