"""On GPUs: what is promised there, and that they compute what the processor computes. Skipped where there is none."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.downstream import EVALUATE, TEST, features_on_disk, final_weights, good, journal, sha, written
from tests.support.forkserver import ForkServer
from tests.support.runs import free_port

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = {"ACCELERATE_USE_CPU": "false"}
PLAIN = "encoder.arguments.drop_path_rate=0"
"""Drop path is drawn by each device in its own way."""


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in journal(run) if "loss" in line}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_killed_run_ends_with_the_same_bits(
    commands: ForkServer, tiny_recipe: Path, tmp_path: Path, precision: str, compiled: str
):
    exact = ("training.deterministic=true", f"training.precision={precision}", f"training.compile={compiled}")
    good(commands.run("mpp.pretrain", tiny_recipe, *exact, f"output_dir={tmp_path / 'straight'}", **GPU))
    run = tmp_path / "run"
    command = commands.start("mpp.pretrain", tiny_recipe, *exact, **GPU)
    while not (run / "checkpoints" / "step-000000004").is_dir():
        assert command.alive, command.text
        time.sleep(0.002)
    command.kill()
    command.wait()
    assert "from step" in good(commands.run("mpp.pretrain", tiny_recipe, *exact, **GPU)).text
    assert losses(run) == losses(tmp_path / "straight")
    assert sha(final_weights(run, 12)) == sha(final_weights(tmp_path / "straight", 12))


@pytest.mark.parametrize("target", ["mean_color", "downsized", "full_patch"])
def test_losses_are_those_of_the_processor(commands: ForkServer, tiny_recipe: Path, tmp_path: Path, target: str):
    changes = (PLAIN, f"objective.target={{kind: {target}}}")
    good(commands.run("mpp.pretrain", tiny_recipe, *changes, **GPU))
    good(commands.run("mpp.pretrain", tiny_recipe, *changes, f"output_dir={tmp_path / 'cpu'}"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)


def test_features_are_those_of_the_processor(
    commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    recipe = written(tmp_path / "evaluate.yaml", EVALUATE, tinted_images)
    found = {}
    for name, environment in (("cpu", {}), ("cuda", GPU)):
        changes = (f"encoder={pretrained}", f"output_dir={tmp_path / name}")
        good(commands.run("mpp.evaluate", recipe, *changes, **environment))
        found[name] = features_on_disk(tmp_path / name / "features", TEST)
    assert found["cpu"].keys() == found["cuda"].keys()
    for place, value in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][place], value, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_give_the_losses_of_one(commands: ForkServer, tiny_recipe: Path, tmp_path: Path):
    good(commands.run("mpp.pretrain", tiny_recipe, PLAIN, **GPU))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", free_port(), "-m", "mpp.pretrain", str(tiny_recipe)]
    changes = (PLAIN, "training.micro_batch_size=8", f"output_dir={tmp_path / 'two'}")
    two = commands.launch(*launcher, *changes, cwd=tmp_path, **GPU)
    assert two.wait() == 0, two.text
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "run"), rel=1e-4)
