"""The same command again: no stop leaves a trace, no mistake costs what is there."""

import hashlib
import json
import os
import re
import shutil
import signal
import sys

import pytest
import torch

from tests.support.forkserver import ForkServer, good, refused
from tests.support.runs import (
    RECIPES,
    arguments,
    checkpoints,
    free_port,
    journal,
    largest_file,
    losses,
    parquet_folder,
    pretrain,
    progress,
    scenes,
    start,
    weights,
    write_parquet,
)

STEPS = "training.duration.steps=120"


def contents(folder):
    """Every file of a folder, the lock apart, which is of whoever looked last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_finished_run_says_so_and_is_left_alone(finished):
    run, settings, _ = finished
    before = (weights(run), (run / "metrics.jsonl").read_bytes())
    assert f"{run} is finished: 120 steps." in good(pretrain("mean_color.yaml", settings)).text
    assert (weights(run), (run / "metrics.jsonl").read_bytes()) == before


def stopped_after(said, number):
    """The last step of a run that a signal stopped, which said how to go on."""
    assert said.code == 128 + number, said.text
    assert "Traceback" not in said.text
    [(step, steps)] = re.findall(r"^stopped after step (\d+) of (\d+), saved\.$", said.text, re.MULTILINE)
    assert "\nGive the same command again to resume.\n" in said.text
    assert int(step) < int(steps)
    return int(step)


def test_sigterm_finishes_the_step_saves_it_says_how_to_go_on_and_exits_143(stopped):
    last = stopped_after(stopped.command, signal.SIGTERM)
    assert journal(stopped.snapshot)[-1]["step"] == last >= 30
    assert progress(checkpoints(stopped.snapshot)[-1]) == last


def test_sigint_sigkill_and_other_workers_leave_no_trace_in_the_weights(stopped, finished):
    stopped.restore()
    run = stopped.run
    settings = [s for s in stopped.settings if not s.startswith("data.workers")]
    for number, workers in ((signal.SIGINT, 1), (signal.SIGKILL, 0)):
        before = progress(checkpoints(run)[-1])
        command = start("mean_color.yaml", [*settings, f"data.workers={workers}"])
        command.until(lambda before=before: progress(checkpoints(run)[-1]) > before)
        command.kill(number)
        command.wait()
        if number == signal.SIGINT:
            assert stopped_after(command, number) == progress(checkpoints(run)[-1])
        else:
            assert command.code is None
    good(stopped.again())
    steps = [row["step"] for row in journal(run)]
    assert weights(run) == weights(finished[0])
    assert losses(run) == losses(finished[0]), "the journal neither repeats nor lacks a step"
    assert steps == sorted(steps)


def test_resume_false_starts_afresh(stopped, finished):
    stopped.restore()
    good(stopped.again("checkpoint.resume=false"))
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


def test_a_run_of_an_earlier_version_goes_on_to_export_the_class_token(stopped, finished):
    """Such a run has not written down what it pools; its own pooling was by the class token."""
    stopped.restore()
    for folder in checkpoints(stopped.run):
        state = json.loads((folder / "state.json").read_text())
        assert state.pop("pool") == "avg"
        (folder / "state.json").write_text(json.dumps(state))
        manifest = json.loads((folder / "manifest.json").read_text())
        content = (folder / "state.json").read_bytes()
        manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    good(stopped.again())
    assert weights(stopped.run) == weights(finished[0])
    config = [json.loads((run / "encoder" / "config.json").read_text()) for run in (stopped.run, finished[0])]
    assert [each["global_pool"] for each in config] == ["token", "avg"]


def test_another_experiment_in_the_same_folder_is_refused_and_every_difference_shown(stopped):
    stopped.restore()
    before = (weights(stopped.run), (stopped.run / "metrics.jsonl").read_bytes(), checkpoints(stopped.run))
    result = stopped.again("seed=70707", "objective.corruption.fraction=0.25", "training.duration.steps=121")
    refused(result, "seed", "70707", "objective.corruption.fraction", "0.25", "training.duration", "121", "120")
    assert (weights(stopped.run), (stopped.run / "metrics.jsonl").read_bytes(), checkpoints(stopped.run)) == before


def test_damaged_checkpoints_are_named_and_the_one_before_them_used(stopped, finished):
    stopped.restore()
    _, incomplete, newest = checkpoints(stopped.run)[-3:]
    missing, flipped = largest_file(incomplete), largest_file(newest)
    missing.unlink()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    result = good(stopped.again())
    for word in (missing.name, incomplete.name, flipped.name, newest.name):
        assert word in result.text
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


def test_without_a_good_checkpoint_it_is_an_error_never_a_fresh_start(stopped):
    stopped.restore()
    victims = [largest_file(folder) for folder in checkpoints(stopped.run)]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    before = (stopped.run / "metrics.jsonl").read_bytes()
    refused(stopped.again(), victims[-1].name, code=1)
    assert (stopped.run / "metrics.jsonl").read_bytes() == before
    assert all(victim.exists() for victim in victims), "nothing lost"


@pytest.mark.parametrize("lost", ["checkpoints/step-*", "checkpoints"])
def test_a_run_that_lost_its_checkpoints_is_refused_and_left_as_it_is(finished, tmp_path, lost):
    original, settings, _ = finished
    run = tmp_path / "run"
    shutil.copytree(original, run)
    for folder in list(run.glob(lost)):
        shutil.rmtree(folder)
    before = contents(run)
    settings = [setting for setting in settings if not setting.startswith("output_dir")]
    refused(pretrain("mean_color.yaml", [*settings, f"output_dir={run}"]), str(run), "checkpoint.resume=false", code=1)
    assert contents(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is moved aside"


def test_a_run_killed_between_its_only_checkpoint_and_its_export_is_exported_by_the_same_command(tmp_path, images):
    run = tmp_path / "run"
    settings = arguments(run, images, "training.duration.steps=3", "checkpoint.every.steps=0")
    good(pretrain("mean_color.yaml", settings))
    exported, saved, curve = contents(run / "encoder"), contents(run / "checkpoints"), losses(run)
    shutil.rmtree(run / "encoder")
    good(pretrain("mean_color.yaml", settings))
    assert contents(run / "encoder") == exported
    assert (contents(run / "checkpoints"), losses(run)) == (saved, curve)
    assert "is finished" in good(pretrain("mean_color.yaml", settings)).text


def test_a_run_killed_between_a_checkpoint_and_its_first_export_goes_on_to_the_same_weights(stopped, finished):
    stopped.restore()
    shutil.rmtree(stopped.run / "encoder")
    good(stopped.again())
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


@pytest.mark.parametrize("name", ["notes.txt", "photos/cat.txt"])
def test_resume_false_moves_nothing_that_no_run_made(tmp_path, images, name):
    run = tmp_path / "mine"
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("dear to me")
    settings = arguments(run, images, "training.duration.steps=2", "checkpoint.resume=false")
    refused(pretrain("mean_color.yaml", settings), str(run), name.split("/")[0])
    assert contents(run) == {name: b"dear to me"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_supervised_run_does_not_go_on_with_other_labels(tmp_path):
    run, train = tmp_path / "run", scenes(24)
    source = parquet_folder(tmp_path / "data", train, labelled=True)
    settings = arguments(run, source, "training.duration.steps=120", "checkpoint.every.steps=10")
    command = start("supervised.yaml", settings)
    command.until(lambda: checkpoints(run))
    command.kill(signal.SIGTERM)
    assert command.wait() == 143, command.text
    before = contents(run)
    labels = [number % 3 for number in range(24)]
    labels[6], labels[7] = labels[7], labels[6]
    shutil.move(source / "train.parquet", tmp_path / "kept.parquet")
    write_parquet(source / "train.parquet", train, labels)
    refused(pretrain("supervised.yaml", settings), str(source), "the rows themselves differ")
    assert contents(run) == before
    shutil.move(tmp_path / "kept.parquet", source / "train.parquet")
    good(pretrain("supervised.yaml", settings))
    assert max(losses(run)) == 120


def test_a_folder_in_use_is_refused_and_the_first_run_goes_on(tmp_path, images):
    run = tmp_path / "run"
    settings = arguments(run, images, "training.duration.steps=100000", "checkpoint.every.steps=20")
    first = start("mean_color.yaml", settings)
    try:
        first.until(lambda: checkpoints(run))
        first.kill(signal.SIGSTOP)
        refused(pretrain("mean_color.yaml", settings), str(run))
        first.kill(signal.SIGCONT)
        known = checkpoints(run)
        first.until(lambda: checkpoints(run)[-1] not in known)
        first.kill(signal.SIGTERM)
        assert first.wait() == 143, first.text
    finally:
        first.kill_group()


# Launched by others: cold, in interpreters of their own


LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")


def stop_when_it_has_saved(command, run):
    command.until(lambda: checkpoints(run))
    command.kill(signal.SIGTERM)
    command.wait()
    assert command.group_is_gone(), "the training processes outlived their launcher"


@pytest.mark.cold
def test_sigterm_to_the_launcher_stops_the_run_cleanly(commands: ForkServer, tmp_path, images, finished):
    run = tmp_path / "run"
    settings = arguments(run, images, STEPS)
    here = ["--cpu", "--num_processes", "1"] if torch.cuda.is_available() else []  # or it would choose the GPUs
    launcher = (*LAUNCH, *here, "-m", "mpp.pretrain", RECIPES / "mean_color.yaml")
    command = commands.launch(*launcher, *settings, cwd=tmp_path)
    stop_when_it_has_saved(command, run)
    assert command.code in (143, -signal.SIGTERM), command.text
    assert journal(run)[-1]["step"] < 120
    good(pretrain("mean_color.yaml", settings))
    assert weights(run) == weights(finished[0])


@pytest.mark.cold
def test_sigterm_to_the_launcher_of_two_processes_stops_the_run_cleanly(
    commands: ForkServer, tmp_path, images, finished
):
    """Which goes on in one process, with the losses of a run that never was in two."""
    run = tmp_path / "run"
    settings = arguments(run, images, STEPS, "training.micro_batch_size=4")
    launcher = (*LAUNCH, "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                "--dynamo_backend", "no", "--main_process_port", free_port(), "-m", "mpp.pretrain")  # fmt: skip
    command = commands.launch(*launcher, RECIPES / "mean_color.yaml", *settings, cwd=tmp_path)
    stop_when_it_has_saved(command, run)
    assert command.code != 0, "torch's launcher has a code and a traceback of its own"
    last = journal(run)[-1]["step"]
    assert last == progress(checkpoints(run)[-1]) < 120
    assert f"stopped after step {last} of 120, saved." in command.text
    assert "2 × cpu" in command.text
    good(pretrain("mean_color.yaml", settings))
    assert losses(run) == pytest.approx(losses(finished[0]), rel=1e-4)


KEEPS_ITS_CODE = """\
import sys
from pathlib import Path

from mpp.pretrain import main

code = main()
Path("code").write_text(str(code))
sys.exit(code)
"""


@pytest.mark.cold
def test_ctrl_c_on_a_launched_run_saves_its_last_step_and_exits_130(commands: ForkServer, tmp_path, images):
    """As from a terminal: launcher, run and loader process get it at the same time."""
    run, script = tmp_path / "run", tmp_path / "launched.py"
    script.write_text(KEEPS_ITS_CODE)
    settings = arguments(run, images, "training.duration.steps=100000", "data.workers=1")
    command = commands.launch(*LAUNCH, script, RECIPES / "mean_color.yaml", *settings, cwd=tmp_path)
    try:
        command.until(lambda: checkpoints(run))
        before = progress(checkpoints(run)[-1])
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait() == -signal.SIGINT, "which a shell shows as 130"
        assert command.group_is_gone(), command.text
    finally:
        command.kill_group()
    assert (tmp_path / "code").read_text() == "130"
    last = journal(run)[-1]["step"]
    assert [row["step"] for row in journal(run)] == list(range(1, last + 1))
    assert progress(checkpoints(run)[-1]) == last > before
    said = f"stopped after step {last} of 100000, saved.\nGive the same command again to resume."
    assert said in command.text
