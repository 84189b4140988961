"""One process at a time writes to a run's folder; an older run is moved aside whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpp.run_folder import FolderLock, foreign_files, move_aside, refuse_other_output


def test_a_second_process_cannot_lock_the_folder_until_the_first_ends(tmp_path):
    run = tmp_path / "run"
    code = f"import time; from mpp.run_folder import *; lock = FolderLock(Path({str(run)!r})); print(1, flush=True); "
    with subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match=rf"in use by another run \(process {other.pid}\)"):
            FolderLock(run, patience=0)
        other.kill()
    FolderLock(run)


def test_a_run_is_moved_whole_to_the_next_free_number(tmp_path):
    run = tmp_path / "run"
    lock = FolderLock(run)
    assert move_aside(run) is None, "there is nothing but the lock"
    for number in (1, 2):
        (run / "checkpoints").mkdir()
        (run / "metrics.jsonl").write_text(f"{number}")
        aside = tmp_path / f"run.{number}"
        assert move_aside(run) == aside
        assert {path.name for path in aside.iterdir()} == {"checkpoints", "metrics.jsonl"}
        assert (aside / "metrics.jsonl").read_text() == f"{number}"
        assert [path.name for path in run.iterdir()] == [".lock"]
    del lock


def test_a_folder_of_other_files_is_not_moved(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"files of no run, e\.g\. thesis\.tex"):
        move_aside(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_start_that_fails_removes_the_folders_that_it_created_and_no_others(tmp_path):
    (tmp_path / "runs").mkdir()
    for run in (tmp_path / "runs" / "a" / "b", tmp_path / "runs"):
        lock = FolderLock(run)
        assert (run / ".lock").is_file()
        del lock
    assert not (tmp_path / "runs" / "a").exists()
    assert (tmp_path / "runs" / ".lock").is_file(), "this folder was there before"
    lock = FolderLock(tmp_path / "runs" / "c")
    (tmp_path / "runs" / "c" / "recipe.yaml").touch()
    del lock
    assert (tmp_path / "runs" / "c" / "recipe.yaml").is_file()


def test_the_lock_refuses_the_output_of_another_command_and_takes_that_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 0\ncommand: evaluate\n")
    with pytest.raises(ValueError, match="holds the output of mpp evaluate"):
        FolderLock(tmp_path, "pretrain")
    assert not (tmp_path / ".lock").exists()
    FolderLock(tmp_path, "evaluate")


def test_a_recipe_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("my own\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml is no recipe of mpp: choose another output_dir"):
        refuse_other_output(tmp_path, "pretrain")


def test_other_files_are_those_that_no_run_has_written(tmp_path: Path) -> None:
    assert foreign_files(tmp_path / "new") == []
    for name in ("b.jpg", "a.txt", "log.txt", "nohup.log", ".lock", "metrics.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    assert foreign_files(tmp_path) == ["a.txt", "b.jpg"]
    (tmp_path / "recipe.yaml").touch()
    assert foreign_files(tmp_path) == []
