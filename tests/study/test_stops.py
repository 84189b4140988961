"""Studies that are stopped, moved, or started twice."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.downstream import good, refused
from tests.support.runs import journal
from tests.support.small_study import ALONE, Study, finished, kill_all, until


def test_time_that_is_up_in_the_middle_of_a_unit_stops_it_and_the_study_can_resume(study: Study, tmp_path: Path):
    long = ("study.arms=[mean_color]", "study.primary=[]", "study.seeds=[0]", *ALONE,
            "pretraining.training.duration.steps=9000")  # fmt: skip
    command = study(*long, "study.minutes=0.15")
    assert command.code == 75, command.text
    home = tmp_path / "gap" / "mean_color" / "seed-0"
    assert "saved" in (home / "log.txt").read_text()
    assert journal(home / "pretrain")[-1]["step"] < 9000
    assert finished(tmp_path / "gap") == {}
    assert "1 of 1 are left" in command.text


def test_a_unit_asked_to_stop_between_its_trainings_stops(study: Study, tmp_path: Path):
    """After pre-training the features are measured: who asks then is not to wait for the fine-tuning."""
    long = "finetuning.training.duration.steps=20000"
    command = study("study.only=[mean_color/seed-0]", long, start=True)
    until(command, lambda: "labelled images of" in command.text)
    command.kill(signal.SIGTERM)
    command.wait()
    assert command.code in (143, None), command.text
    tuned = tmp_path / "gap" / "mean_color" / "seed-0" / "finetune-0.5"
    assert not tuned.exists() or journal(tuned)[-1]["step"] < 20000, "it went on for all of the fine-tuning"


def test_a_study_that_was_moved_resumes_in_the_middle_of_a_fine_tuning(study: Study, tmp_path: Path):
    one = ("study.arms=[mean_color]", "study.primary=[]", "study.seeds=[0]", *ALONE)
    command = study(*one, start=True)
    until(command, lambda: (tmp_path / "gap/mean_color/seed-0/finetune-0.5/checkpoints/step-000000004").is_dir())
    kill_all(command)
    (tmp_path / "gap").rename(tmp_path / "moved")
    good(study(*one, f"output_dir={tmp_path / 'moved'}"))
    assert list(finished(tmp_path / "moved")) == ["mean_color/seed-0"]


def test_two_studies_in_one_folder_are_refused(study: Study, tmp_path: Path):
    first = study("pretraining.training.duration.steps=100000", "study.arms=[mean_color]",
                  "study.primary=[]", *ALONE, start=True)  # fmt: skip
    try:
        until(first, lambda: (tmp_path / "gap/mean_color/seed-0/pretrain/checkpoints").is_dir())
        second = study("pretraining.training.duration.steps=100000", "study.arms=[mean_color]",
                       "study.primary=[]", *ALONE)  # fmt: skip
        refused(second, str(tmp_path / "gap"), "in use")
    finally:
        kill_all(first)
