"""Pushing during a run: it arrives, and whatever becomes of it, the run is the same to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from mpp.training.metrics_log import read_metrics
from tests.support.downstream import PRETRAIN, good, refused, written
from tests.support.forkserver import ForkServer, as_two
from tests.support.model_hub import EXPIRED, WRITER, Fault, ModelHub
from tests.support.runs import checkpoints, free_port, journal, weights

SLOWER = ("training.duration.steps=40", "checkpoint.every.steps=4", "hub.every.steps=4")


@pytest.fixture(scope="module")
def alone(online: ForkServer, home: Path, tinted_images: Path) -> Path:
    """A run that pushes nothing."""
    recipe = written(home / "alone.yaml", PRETRAIN, tinted_images, home / "alone")
    good(online.run("mpp.pretrain", recipe, *SLOWER, cwd=home))
    return home / "alone"


@pytest.fixture
def recipe(tmp_path: Path, tinted_images: Path) -> Path:
    return written(tmp_path / "pretrain.yaml", PRETRAIN, tinted_images, tmp_path / "run")


def test_a_run_that_pushes_ends_with_the_same_weights_and_its_last_checkpoint_on_the_hub(
    alone: Path, recipe: Path, hub: ModelHub, online: ForkServer, tmp_path: Path
):
    said = good(online.run("mpp.pretrain", recipe, *SLOWER, "hub.push_to=user/during", cwd=tmp_path)).text
    repo = hub.repos["user/during"]
    assert repo.private
    steps = [int(commit.message.removeprefix("Encoder of step ")) for commit in repo.pushed]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40
    assert f"pushed to {hub.endpoint}/user/during" in said
    assert weights(tmp_path / "run") == weights(alone)
    pushed = load(repo.commits[-1].files["model.safetensors"])
    exported = load((tmp_path / "run" / "encoder" / "model.safetensors").read_bytes())
    assert pushed.keys() == exported.keys()
    assert all(torch.equal(pushed[name], value) for name, value in exported.items())
    assert WRITER not in said
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or WRITER.encode() not in path.read_bytes(), path
    assert journal(tmp_path / "run")[-1]["step"] == 40


def test_the_newest_checkpoint_is_pushed_while_the_run_goes_on(
    recipe: Path, hub: ModelHub, online: ForkServer, tmp_path: Path
):
    """A run that would take hours is stopped as soon as something has arrived."""
    long = ("training.duration.steps=1000000", "checkpoint.every.steps=4", "hub.every.steps=4")
    command = online.start("mpp.pretrain", recipe, *long, "hub.push_to=user/early", cwd=tmp_path)
    try:
        command.until(lambda: "user/early" in hub.repos and hub.repos["user/early"].pushed)
        at = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
        command.until(lambda: read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] > at)
    finally:
        command.kill(15)
        command.wait()
    assert command.code == 143, command.text
    (commit, *_) = hub.repos["user/early"].pushed
    assert 0 < int(commit.message.removeprefix("Encoder of step ")) <= at


@pytest.mark.parametrize("fault", ["expired token", "a Hub that refuses"])
def test_pushes_that_fail_leave_the_run_as_it_is_and_say_what_to_do(
    fault: str, alone: Path, recipe: Path, hub: ModelHub, online: ForkServer, tmp_path: Path
):
    token = EXPIRED if fault == "expired token" else WRITER
    if token == WRITER:
        hub.faults = [Fault("POST /api/repos/create", status=400)]
    settings = (*SLOWER, "hub.every.steps=0", "hub.push_to=user/never")  # at the end alone: each takes seconds to fail
    said = good(online.run("mpp.pretrain", recipe, *settings, cwd=tmp_path, HF_TOKEN=token)).text
    assert "the push to user/never failed: " in said
    assert f"python -m mpp.push {tmp_path / 'run'} user/never --private" in said
    assert "Traceback" not in said
    assert token not in said + (tmp_path / "run" / "push.log").read_text()
    assert weights(tmp_path / "run") == weights(alone)
    assert len(checkpoints(tmp_path / "run")) >= 2
    assert "user/never" not in hub.repos


@pytest.mark.parametrize(
    ("given", "env", "said"),
    [
        ("hub.push_to=user/x", {"HF_TOKEN": ""}, ("no token", "hf auth login")),
        ("hub.push_to=user/x--y", {}, ("hub.push_to", "--")),
        ("hub.license=Apache 2", {}, ("hub.license", "no identifier of a licence")),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_trained(
    given: str,
    env: dict[str, str],
    said: tuple[str, ...],
    recipe: Path,
    online: ForkServer,
    hub: ModelHub,
    tmp_path: Path,
):
    hub.received.clear()
    settings = dict([("hub.push_to", "user/x"), given.split("=", 1)])
    command = online.run("mpp.pretrain", recipe, *(f"{k}={v}" for k, v in settings.items()), cwd=tmp_path, **env)
    refused(command, *said)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not hub.received


def test_two_processes_go_on_where_a_push_alone_is_due(recipe: Path, hub: ModelHub, online: ForkServer):
    """One process pushes, and both wait for each other after it."""
    quiet = ("training.duration.steps=6", "validation.every.steps=0", "checkpoint.every.steps=2", "hub.every.steps=3")
    for command in as_two(online, "mpp.pretrain", free_port(), recipe, *quiet, "hub.push_to=user/two"):
        good(command)
    assert hub.repos["user/two"].pushed[-1].message == "Encoder of step 6"
