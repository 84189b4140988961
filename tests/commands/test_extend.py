"""Longer runs: `checkpoint.extend`, where the schedule allows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.forkserver import good, refused
from tests.support.runs import arguments, checkpoints, journal, pretrain, pretrain_all, progress, weights

RECIPE = "mean_color.yaml"
WSD = ("optimizer.schedule=wsd", "optimizer.decay.steps=6")
CONSTANT = ("optimizer.schedule=constant",)
EXTEND = "checkpoint.extend=true"


def steps(count: int) -> str:
    return f"training.duration.steps={count}"


@pytest.mark.parametrize("schedule", [WSD, CONSTANT], ids=["wsd", "constant"])
def test_an_extended_run_is_the_one_that_was_as_long_from_the_start(schedule: tuple[str, ...], tmp_path, images):
    extended, whole = tmp_path / "extended", tmp_path / "whole"
    # The last stable step of wsd, 14, is no multiple of checkpoint.every: that checkpoint is kept for this.
    short = arguments(extended, images, steps(20), *schedule, "checkpoint.every.steps=3", "checkpoint.keep=2")
    long = arguments(extended, images, steps(30), *schedule, "checkpoint.every.steps=3", "checkpoint.keep=2", EXTEND)
    others = arguments(whole, images, steps(30), *schedule, "checkpoint.every.steps=3", "checkpoint.keep=2")
    good(pretrain(RECIPE, short))
    end = weights(extended)
    result = good(pretrain(RECIPE, long))
    good(pretrain(RECIPE, others))
    assert weights(extended) == weights(whole)
    assert [row["step"] for row in journal(extended)] == list(range(1, 31))
    assert [row["loss"] for row in journal(extended)] == [row["loss"] for row in journal(whole)]
    if schedule == WSD:
        assert "from step 14" in result.text
        assert weights(extended / "shorter_run") == end, "the decayed weights of the shorter run are kept"
        assert [progress(path) for path in checkpoints(extended)] == [progress(path) for path in checkpoints(whole)]
    else:
        assert "from step 20" in result.text
        assert not (extended / "shorter_run").exists()
    assert "is finished: 30 steps" in good(pretrain(RECIPE, long)).text


def test_a_constant_run_is_extended_by_a_decay(tmp_path, images):
    extended, whole = tmp_path / "extended", tmp_path / "whole"
    jobs = {
        "constant": (RECIPE, arguments(extended, images, steps(10), *CONSTANT)),
        "decay": (RECIPE, arguments(extended, images, steps(16), *WSD, EXTEND)),
        "whole": (RECIPE, arguments(whole, images, steps(16), *WSD)),
    }
    for result in pretrain_all(jobs).values():
        good(result)
    assert weights(extended) == weights(whole)


@pytest.fixture(scope="module")
def cosine(tmp_path_factory, images) -> Path:
    run = tmp_path_factory.mktemp("cosine") / "run"
    good(pretrain(RECIPE, arguments(run, images, steps(10))))
    return run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((steps(20),), "checkpoint.extend=true makes a run longer"),
        ((steps(20), EXTEND), "objective.source="),
        ((steps(8), EXTEND), "give a longer one"),
        ((steps(20), EXTEND, "optimizer.lr=1e-2"), "optimizer.lr: 0.001 then, 0.01 now"),
    ],
)
def test_what_cannot_be_extended_is_refused_and_stays_as_it_is(changes: tuple[str, ...], said: str, cosine, images):
    before = weights(cosine)
    refused(pretrain(RECIPE, arguments(cosine, images, *changes)), said)
    assert weights(cosine) == before
    assert "is finished: 10 steps" in good(pretrain(RECIPE, arguments(cosine, images, steps(10)))).text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("optimizer.schedule=wsd",), "wsd needs a decay"),
        (("optimizer.decay.steps=3",), "others take none"),
        ((*WSD, "optimizer.warmup.steps=8"), "warm-up and decay take 8 + 6 steps, and the run has 10"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(changes: tuple[str, ...], said: str, tmp_path, images):
    refused(pretrain(RECIPE, arguments(tmp_path / "run", images, steps(10), *changes)), said)
    assert not (tmp_path / "run").exists()
