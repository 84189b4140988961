"""Longer runs: `checkpoint.extend`, where the schedule allows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mpp.commands.resumptions import Resumption, resumptions
from mpp.settings import Duration
from mpp.training.optimizer import plan_schedule
from mpp.training.settings import OptimizerSettings, TrainingSettings
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
        assert resumptions(extended) == [Resumption(14, 30)]
        assert weights(extended / "shorter_run") == end, "the decayed weights of the shorter run are kept"
        assert [progress(path) for path in checkpoints(extended)] == [progress(path) for path in checkpoints(whole)]
    else:
        assert "from step 20" in result.text
        assert resumptions(extended) == [Resumption(20, 30)]
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
        ((steps(20), EXTEND, "optimizer.lr=1e-2"), "optimizer.lr=0.001 then, 0.01 now"),
    ],
)
def test_what_cannot_be_extended_is_refused_and_stays_as_it_is(changes: tuple[str, ...], said: str, cosine, images):
    before = weights(cosine)
    failed = pretrain(RECIPE, arguments(cosine, images, *changes))
    refused(failed, said)
    if changes[1:] == ():
        lines = failed.text.splitlines()
        [first] = [line for line in lines if line.startswith("error: ")]
        assert first == f"error: {cosine} holds another run, at step 10."
        assert lines[-1] == "  training.duration={steps: 10} then, {steps: 20} now", "advice first, settings last"
    assert weights(cosine) == before
    assert "is finished: 10 steps" in good(pretrain(RECIPE, arguments(cosine, images, steps(10)))).text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("optimizer.schedule=wsd",), "wsd needs a decay"),
        (("optimizer.decay.steps=3",), "others take none"),
        (
            (*WSD, "optimizer.warmup.steps=8"),
            "8 + 6 steps, and the run has 10; give, for example, optimizer.warmup.steps=1 optimizer.decay.steps=2",
        ),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(changes: tuple[str, ...], said: str, tmp_path, images):
    refused(pretrain(RECIPE, arguments(tmp_path / "run", images, steps(10), *changes)), said)
    assert not (tmp_path / "run").exists()


def test_a_changed_schedule_is_named_as_the_cause(tmp_path, images):
    run = tmp_path / "run"
    good(pretrain(RECIPE, arguments(run, images, steps(10), *WSD, "checkpoint.every.steps=0")))
    changes = (steps(20), EXTEND, "optimizer.schedule=cosine", "optimizer.decay=null")
    refused(
        pretrain(RECIPE, arguments(run, images, *changes)),
        "checkpoint.extend: the schedule was changed: optimizer.schedule=wsd then, cosine now",
        "give the old schedule to extend the run",
    )


@pytest.mark.parametrize("unit", ["steps", "epochs", "images"])
@pytest.mark.parametrize("rows", [22, 1080, 50_000])
@pytest.mark.parametrize("length", [1, 2, 7, 85, 1000])
def test_the_proposed_warm_up_and_decay_fit(unit: str, rows: int, length: int):
    training = TrainingSettings(batch_size=64, duration=Duration(steps=length))
    much = Duration(**{unit: {"steps": length, "images": length * 64, "epochs": length * 64 / rows}[unit]})
    settings = {"schedule": "wsd", "warmup": much.scaled(0.6), "decay": much.scaled(2)}
    with pytest.raises(ValueError, match="warm-up and decay take") as caught:
        plan_schedule(OptimizerSettings(**settings), training, rows)
    proposed = re.findall(r"optimizer\.(warmup|decay)\.(\w+)=(\S+)", str(caught.value))
    assert [name for name, *_ in proposed] == ["warmup", "decay"]
    assert {each for _, each, _ in proposed} == {unit}
    fitting = {name: Duration(**{each: float(value)}) for name, each, value in proposed}
    plan = plan_schedule(OptimizerSettings(schedule="wsd", **fitting), training, rows)
    assert plan.decay > 0
    assert plan.decay + plan.warmup <= length
