"""The progress of a study: what its units' logs say, and the time that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpp.study.progress import Seen, Stage, StudyProgress, seen, stages_of
from mpp.study.units import Unit, units_of
from tests.support.small_study import gap_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    return gap_recipe(tmp_path, "finetuning.search.lr=[1e-3,1e-2]")


def log(stage: Stage, step: int, **more: Any) -> None:
    stage.folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": number, "samples": number, "noise": "x" * 900, **more}) for number in range(step + 1)]
    (stage.folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9')


def test_the_stages_of_a_unit_are_its_trainings_with_every_run_of_the_search(recipe: Any):
    found = {arm: stages_of(recipe, Unit(arm, 0)) for arm in ("raw_pixels", "random", "scratch", "mean_color")}
    assert found["raw_pixels"] == []
    titles = ["search lr=0.001", "search lr=0.01", "fine-tuning on 50 %"]
    assert [stage.title for stage in found["random"]] == titles
    assert [stage.title for stage in found["mean_color"]] == ["pre-training", *titles]
    assert [(stage.steps, stage.batch_size) for stage in found["mean_color"]] == [(12, 16), (12, 8), (12, 8), (12, 8)]
    assert {stage.steps for stage in found["scratch"]} == {12 + 24}, "as many images as both together"
    assert found["random"][0].folder.parts[-4:] == ("seed-0", "finetune-0.5", "search", "lr=0.001")


def test_the_last_whole_line_of_a_log_says_how_far_a_training_has_come(tmp_path: Path):
    stage = Stage("pre-training", tmp_path / "run", 100, 16)
    assert seen(stage) == Seen(0, None)
    log(stage, 7, seconds_left=61.2)
    assert seen(stage) == Seen(7, 61.2)


def test_the_time_left_is_of_all_units_by_their_images(recipe: Any, monkeypatch: pytest.MonkeyPatch):
    units = units_of(recipe)
    mine, other = Unit("mean_color", 0), Unit("random", 0)
    before = 1_000.0
    monkeypatch.setattr("mpp.study.progress.time.monotonic", lambda: before)
    log(stages_of(recipe, mine)[0], 6)  # of an earlier start: it says nothing about this one's speed
    progress = StudyProgress(recipe, units, [Unit("raw_pixels", 0)], workers=1)
    images = 192 + 3 * 96
    assert progress.images[mine] == images
    assert progress.images[Unit("raw_pixels", 0)] == 1
    assert (progress.trained(mine), progress.trained(other)) == (96, 0)
    assert progress.left([mine]) == "11 of 12 units left"
    assert progress.state(other) == "starting"
    assert progress.state(Unit("raw_pixels", 1)) == "evaluating"
    assert progress.state(mine) == "pre-training, 6/12"

    before += 60
    log(stages_of(recipe, mine)[0], 12, seconds_left=0.0)
    log(stages_of(recipe, mine)[1], 3, seconds_left=5.4)
    assert progress.state(mine) == "search lr=0.001, 3/12, 00:05 left"
    trained = 96 + 24
    assert progress.trained(mine) == 96 + trained
    left = 60 / trained * (progress.total - 1 - progress.trained(mine))
    minutes, seconds = divmod(int(left), 60)
    assert progress.left([mine]) == f"11 of 12 units left, about {minutes:02d}:{seconds:02d}"

    progress.done |= {mine}
    assert progress.trained(mine) == images
    progress.done |= set(units)
    assert progress.left([]) == "0 of 12 units left"
