"""`mpp pretrain RECIPE --processes 2`: a launcher without a traceback of its own."""

from __future__ import annotations

import signal

from tests.support.forkserver import ForkServer, good
from tests.support.runs import arguments, checkpoints, journal, pretrain_as_two, weights

STEPS = "training.duration.steps=40"
MICRO = "training.micro_batch_size=4"


def test_an_interrupted_run_of_two_processes_says_so_once_and_ends_as_one_never_interrupted(
    commands: ForkServer, tmp_path, images
):
    settings = arguments(tmp_path / "run", images, STEPS, MICRO)
    command = ("mpp.__main__", "pretrain", "mean_color", *settings, "--processes", "2")
    launched = commands.start(*command)
    launched.until(lambda: checkpoints(tmp_path / "run"))
    launched.kill(signal.SIGINT)
    assert launched.wait() == 130, launched.text
    last = journal(tmp_path / "run")[-1]["step"]
    assert last < 40
    assert f"stopped after step {last} of 40, saved." in launched.text
    assert "Traceback" not in launched.text
    assert "UserWarning" not in launched.text, launched.text
    resumed = good(commands.run(*command))
    assert "2 × cpu" in resumed.text
    for result in pretrain_as_two("mean_color.yaml", arguments(tmp_path / "whole", images, STEPS, MICRO)):
        good(result)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_mistake_is_reported_once_and_ends_all_processes(commands: ForkServer, tmp_path, images):
    settings = arguments(tmp_path / "run", images, STEPS, "training.batch_size=7", "training.micro_batch_size=null")
    failed = commands.run("mpp.__main__", "pretrain", "mean_color", *settings, "--processes", "2")
    assert failed.code == 2
    assert failed.text.count("7 is not a multiple of the 2 processes") == 1
    assert not (tmp_path / "run").exists()
