"""One process at a time writes to a run's folder; an older run is moved aside whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpp.run_folder import FolderLock, move_aside


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
