"""The same command again: no stop leaves a trace, no mistake costs what is there."""

import os
import re
import shutil
import signal
import sys

import pytest

from tests.support.runs import (
    RECIPES,
    Process,
    alone,
    arguments,
    assert_refused,
    assert_succeeds,
    checkpoints,
    journal,
    largest_file,
    launched,
    launched_twice,
    losses,
    parquet_folder,
    pretrain,
    progress,
    scenes,
    weights,
    write_parquet,
)


def contents(folder):
    """Every file of a folder, the lock apart, which is of whoever looked last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_finished_run_says_so_and_is_left_alone(finished):
    run, settings, _ = finished
    before = (weights(run), (run / "metrics.jsonl").read_bytes())
    result = pretrain("mean_color.yaml", settings, run.parent)
    assert_succeeds(result)
    assert re.search("finish|complete|already|done", result.output, re.IGNORECASE)
    assert (weights(run), (run / "metrics.jsonl").read_bytes()) == before


def test_sigterm_saves_says_how_to_go_on_and_exits_143(stopped):
    assert stopped.result.returncode == 143, stopped.result.output
    assert "Traceback" not in stopped.result.output
    assert re.search("resume|again|continue|go on", stopped.result.output, re.IGNORECASE)
    steps = [row["step"] for row in journal(stopped.snapshot)]
    assert 30 <= steps[-1] < 120
    newest = progress(checkpoints(stopped.snapshot)[-1])
    assert newest in (steps[-1], 8 * steps[-1]), "the step it finished is the one it saved"


def test_sigint_sigkill_and_other_workers_leave_no_trace_in_the_weights(stopped, finished):
    stopped.restore()
    run = stopped.run
    settings = [s for s in stopped.settings if not s.startswith("data.workers")]
    for number, workers, expected in ((signal.SIGINT, 1, 130), (signal.SIGKILL, 0, -9)):
        before = progress(checkpoints(run)[-1])
        command = [*alone(), str(RECIPES / "mean_color.yaml"), *settings, f"data.workers={workers}"]
        process = Process(command, run.parent)
        process.until(lambda before=before: progress(checkpoints(run)[-1]) > before)
        process.popen.send_signal(number)
        assert process.wait() == expected, process.output
        process.kill()  # a killed run's workers, if any
    last = stopped.again()
    assert_succeeds(last)
    assert weights(run) == weights(finished[0])
    assert losses(run) == losses(finished[0]), "the journal neither repeats nor lacks a step"
    steps = [row["step"] for row in journal(run)]
    assert steps == sorted(steps)


def test_resume_false_starts_afresh(stopped, finished):
    stopped.restore()
    assert_succeeds(stopped.again("checkpoint.resume=false"))
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


def test_another_experiment_in_the_same_folder_is_refused_and_every_difference_shown(stopped):
    stopped.restore()
    before = (weights(stopped.run), (stopped.run / "metrics.jsonl").read_bytes(), checkpoints(stopped.run))
    result = stopped.again("seed=70707", "objective.corruption.fraction=0.25", "training.duration.steps=121")
    assert_refused(result, "seed", "70707", "objective.corruption.fraction", "0.25", "training.duration", "121", "120")
    assert (weights(stopped.run), (stopped.run / "metrics.jsonl").read_bytes(), checkpoints(stopped.run)) == before


def test_damaged_checkpoints_are_named_and_the_one_before_them_used(stopped, finished):
    stopped.restore()
    _, incomplete, newest = checkpoints(stopped.run)[-3:]
    missing, flipped = largest_file(incomplete), largest_file(newest)
    missing.unlink()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    result = stopped.again()
    assert_succeeds(result)
    for word in (missing.name, incomplete.name, flipped.name, newest.name):
        assert word in result.output
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


def test_without_a_good_checkpoint_it_is_an_error_never_a_fresh_start(stopped):
    stopped.restore()
    victims = [largest_file(folder) for folder in checkpoints(stopped.run)]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    before = (stopped.run / "metrics.jsonl").read_bytes()
    assert_refused(stopped.again(), victims[-1].name)
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
    result = pretrain("mean_color.yaml", [*settings, f"output_dir={run}"], tmp_path)
    assert_refused(result, str(run), "checkpoint.resume=false")
    assert result.output.count("error: ") == 1
    assert contents(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is moved aside"


def test_a_run_killed_between_its_only_checkpoint_and_its_export_is_exported_by_the_same_command(tmp_path, images):
    run = tmp_path / "run"
    settings = arguments(run, images, "training.duration.steps=3", "checkpoint.every.steps=0")
    assert_succeeds(pretrain("mean_color.yaml", settings, tmp_path))
    exported, saved, curve = contents(run / "encoder"), contents(run / "checkpoints"), losses(run)
    shutil.rmtree(run / "encoder")
    assert_succeeds(pretrain("mean_color.yaml", settings, tmp_path))
    assert contents(run / "encoder") == exported
    assert (contents(run / "checkpoints"), losses(run)) == (saved, curve)
    result = pretrain("mean_color.yaml", settings, tmp_path)
    assert_succeeds(result)
    assert "is finished" in result.output


def test_a_run_killed_between_a_checkpoint_and_its_first_export_goes_on_to_the_same_weights(stopped, finished):
    stopped.restore()
    shutil.rmtree(stopped.run / "encoder")
    assert_succeeds(stopped.again())
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


@pytest.mark.parametrize("name", ["notes.txt", "photos/cat.txt"])
def test_resume_false_moves_nothing_that_no_run_made(tmp_path, images, name):
    run = tmp_path / "mine"
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("dear to me")
    settings = arguments(run, images, "training.duration.steps=2", "checkpoint.resume=false")
    result = pretrain("mean_color.yaml", settings, tmp_path)
    assert_refused(result, str(run), name.split("/")[0])
    assert result.output.count("error: ") == 1
    assert contents(run) == {name: b"dear to me"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_supervised_run_does_not_go_on_with_other_labels(tmp_path):
    run, train = tmp_path / "run", scenes(24)
    source = parquet_folder(tmp_path / "data", train, labelled=True)
    settings = arguments(run, source, "training.duration.steps=120", "checkpoint.every.steps=10")
    process = Process([*alone(), str(RECIPES / "supervised.yaml"), *settings], tmp_path)
    process.until(lambda: len(checkpoints(run)) >= 1)
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == 143, process.output
    before = contents(run)
    labels = [number % 3 for number in range(24)]
    labels[6], labels[7] = labels[7], labels[6]
    shutil.move(source / "train.parquet", tmp_path / "kept.parquet")
    write_parquet(source / "train.parquet", train, labels)
    result = pretrain("supervised.yaml", settings, tmp_path)
    assert_refused(result, str(source), "the rows themselves differ")
    assert result.output.count("error: ") == 1
    assert contents(run) == before
    shutil.move(tmp_path / "kept.parquet", source / "train.parquet")
    assert_succeeds(pretrain("supervised.yaml", settings, tmp_path))
    assert max(losses(run)) == 120


def test_a_folder_in_use_is_refused_and_the_first_run_goes_on(tmp_path, images):
    run = tmp_path / "run"
    settings = arguments(run, images, "training.duration.steps=100000", "checkpoint.every.steps=20")
    first = Process([*alone(), str(RECIPES / "mean_color.yaml"), *settings], tmp_path)
    try:
        first.until(lambda: len(checkpoints(run)) >= 1)
        first.popen.send_signal(signal.SIGSTOP)
        assert_refused(pretrain("mean_color.yaml", settings, tmp_path), str(run))
        first.popen.send_signal(signal.SIGCONT)
        known = checkpoints(run)
        first.until(lambda: checkpoints(run)[-1] not in known)
        first.popen.send_signal(signal.SIGTERM)
        assert first.wait() == 143, first.output
    finally:
        first.kill()


def test_sigterm_to_the_launcher_stops_the_run_cleanly(tmp_path, images, finished):
    run = tmp_path / "run"
    settings = [s for s in finished[1] if not s.startswith(("output_dir", "data.source"))]
    settings += [f"output_dir={run}", f"data.source={images}"]
    command = [*launched(), str(RECIPES / "mean_color.yaml"), *settings]
    process = Process(command, tmp_path)
    process.until(lambda: len(checkpoints(run)) >= 1)
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() in (143, -signal.SIGTERM), process.output
    assert process.group_is_gone(), "the training process outlived its launcher"
    assert journal(run)[-1]["step"] < 120
    assert_succeeds(pretrain("mean_color.yaml", settings, tmp_path))
    assert weights(run) == weights(finished[0])


def test_sigterm_to_the_launcher_of_two_processes_stops_the_run_cleanly(tmp_path, images, finished):
    """Which goes on in one process, with the losses of a run that never was in two."""
    run = tmp_path / "run"
    settings = [s for s in finished[1] if not s.startswith(("output_dir", "data.source", "training.micro_batch_size"))]
    settings += [f"output_dir={run}", f"data.source={images}", "training.micro_batch_size=4"]
    command = [*launched_twice(), str(RECIPES / "mean_color.yaml"), *settings]
    process = Process(command, tmp_path)
    process.until(lambda: len(checkpoints(run)) >= 1)
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() != 0, "torch's launcher has a code and a traceback of its own"
    assert process.group_is_gone(), "the training processes outlived their launcher"
    last = journal(run)[-1]["step"]
    assert last == progress(checkpoints(run)[-1]) < 120
    assert f"stopped after step {last} of 120, saved." in process.output
    assert "2 × cpu" in process.output
    assert_succeeds(pretrain("mean_color.yaml", settings, tmp_path))
    assert losses(run) == pytest.approx(losses(finished[0]), rel=1e-4)


KEEPS_ITS_CODE = """\
import sys
from pathlib import Path

from mpp.pretrain import main

code = main()
Path("code").write_text(str(code))
sys.exit(code)
"""


def test_ctrl_c_on_a_launched_run_saves_its_last_step_and_exits_130(tmp_path, images):
    """As from a terminal: launcher, run and loader process get it at the same time."""
    run, script = tmp_path / "run", tmp_path / "launched.py"
    script.write_text(KEEPS_ITS_CODE)
    settings = arguments(run, images, "training.duration.steps=100000", "data.workers=1")
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(script), str(RECIPES / "mean_color.yaml")]
    process = Process([*launch, *settings], tmp_path)
    try:
        process.until(lambda: len(checkpoints(run)) >= 1)
        before = progress(checkpoints(run)[-1])
        os.killpg(process.popen.pid, signal.SIGINT)
        assert process.wait() == -signal.SIGINT, "which a shell shows as 130"
        assert process.group_is_gone(), process.output
    finally:
        process.kill()
    assert (tmp_path / "code").read_text() == "130"
    last = journal(run)[-1]["step"]
    assert [row["step"] for row in journal(run)] == list(range(1, last + 1))
    assert progress(checkpoints(run)[-1]) == last > before
    said = f"stopped after step {last} of 100000, saved.\nGive the same command again to go on from there."
    assert said in process.output
