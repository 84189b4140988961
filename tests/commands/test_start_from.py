"""A new run that starts from another: from its encoder, or from the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.forkserver import ForkServer, good, refused
from tests.support.runs import arguments, checkpoints, pretrain, pretrain_all

RECIPE = "mean_color.yaml"
FIRST = "training.duration.steps=1"
TINY_STEP = ("optimizer.lr=1e-30", "optimizer.weight_decay=0")
"""So small that the weights stay what they were."""


@pytest.fixture(scope="module")
def source(tmp_path_factory, images) -> Path:
    run = tmp_path_factory.mktemp("source") / "run"
    good(pretrain(RECIPE, arguments(run, images, "training.duration.steps=4")))
    return run


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[-1] / "weights.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """The parts that are the same in both, to the last bit."""
    parts = {name.partition(".")[0] for name in first}
    same = {n for n in first if n in second and torch.equal(first[n], second[n])}
    return {part for part in parts if all(n in same for n in first if n.partition(".")[0] == part)}


def test_what_is_taken_is_equal_and_what_is_new_is_said(source: Path, tmp_path, images, commands: ForkServer):
    pushed = tmp_path / "pushed"
    good(commands.run("mpp.push", source, "me/it", "--dry-run", "--folder", pushed))
    common = (FIRST, *TINY_STEP)
    whole, other = f"objective.source={source}", "objective.target.kind=full_patch"
    runs = {
        "whole": (whole,),
        "pushed": (f"objective.source={pushed}",),
        "other target": (whole, other),
        "encoder alone": (f"encoder.source={source}",),
    }
    jobs = {name: (RECIPE, arguments(tmp_path / name, images, *common, *given)) for name, given in runs.items()}
    said = {name: good(result).text for name, result in pretrain_all(jobs).items()}
    before = state(source)
    taken = {name: equal(before, state(tmp_path / name)) for name in runs}
    everything = {"encoder", "mask_token", "head"}
    assert taken == {
        "whole": everything,
        "pushed": everything,
        "other target": {"encoder", "mask_token"},
        "encoder alone": {"encoder"},
    }
    assert f"from {source}: encoder, mask_token, head\n" in said["whole"]
    assert f"from {source}: encoder, mask_token; new: head\n" in said["other target"]
    assert f"from {source}: encoder; new: head, mask_token\n" in said["encoder alone"]


def test_two_sources_and_a_source_that_is_not_there_are_refused(source: Path, tmp_path, images):
    both = (f"objective.source={source}", f"encoder.source={tmp_path}")
    refused(pretrain(RECIPE, arguments(tmp_path / "run", images, FIRST, *both)), "encoder")
    near = source.with_name("runn")
    refused(pretrain(RECIPE, arguments(tmp_path / "run", images, FIRST, f"objective.source={near}")), "did you mean")
    assert not (tmp_path / "run").exists()


def test_a_run_from_another_is_resumed_without_taking_anything_again(source: Path, tmp_path, images):
    given = (f"objective.source={source}", "checkpoint.every.steps=1")
    settings = arguments(tmp_path / "run", images, "training.duration.steps=3", *given)
    good(pretrain(RECIPE, settings))
    for later in checkpoints(tmp_path / "run")[1:]:
        (later / "manifest.json").unlink()
    resumed = good(pretrain(RECIPE, settings))
    assert "from step 1" in resumed.text
    assert f"from {source}:" not in resumed.text
