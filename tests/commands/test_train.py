"""`mpp.train`: runs from Python, several in one process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mpp
from mpp.training.metrics_log import Journal
from tests.support.downstream import EVALUATE, FINETUNE, PRETRAIN, good, written
from tests.support.forkserver import ForkServer


@pytest.fixture
def recipe(tinted_images: Path, tmp_path: Path) -> Path:
    return written(tmp_path / "recipe.yaml", PRETRAIN, tinted_images, tmp_path / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt(recipe: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run, and give it a Ctrl-C in its first step."""
    advance = Journal.advance

    def interrupted(journal: Journal, loss: float) -> None:
        advance(journal, loss)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt, match="the same call resumes"):
            mpp.train(recipe, overrides)


def test_a_run_is_that_of_the_command_and_the_same_call_resumes_it(
    recipe: Path, commands: ForkServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found = mpp.train(recipe, ["training.duration.steps=8"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert found.folder == tmp_path / "run"
    assert [line["step"] for line in found.metrics] == list(range(1, 9))
    assert found.metrics == [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    assert same(found.encoder.model.state_dict(), weights(found.folder))
    good(commands.run("mpp.pretrain", recipe, f"output_dir={tmp_path / 'command'}"))
    assert same(weights(found.folder), weights(tmp_path / "command"))
    capsys.readouterr()
    assert same(mpp.train(recipe).encoder.model.state_dict(), weights(found.folder))
    assert "is finished" in capsys.readouterr().out


def test_an_interrupted_run_is_saved_and_resumed_to_the_same_bits(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = mpp.train(recipe, [f"output_dir={tmp_path / 'whole'}"])
    interrupt(recipe, [], monkeypatch)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) < 8
    resumed = mpp.train(recipe)
    assert [line["step"] for line in resumed.metrics] == list(range(1, 9))
    assert same(resumed.encoder.model.state_dict(), whole.encoder.model.state_dict())


def test_other_threads_than_at_the_start_are_reported(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = "the run started with 1 threads and resumes with 2: its weights will differ"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    interrupt(recipe, ["training.threads=null"], monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    interrupt(recipe, ["training.threads=null"], monkeypatch)
    assert words in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mpp.train(recipe, ["training.threads=null"])
    assert "the run started with" not in capsys.readouterr().out, "those of the first step count"


def test_a_loaded_recipe_takes_overrides_too(recipe: Path, tmp_path: Path):
    loaded = mpp.load_recipe(recipe)
    found = mpp.train(loaded, [f"output_dir={tmp_path / 'other'}", "training.duration.steps=2"])
    assert found.folder == tmp_path / "other"
    assert len(found.metrics) == 2
    assert not (tmp_path / "run").exists()


def test_runs_of_two_precisions_in_one_process_are_each_those_of_their_own(recipe: Path, tmp_path: Path):
    steps = ["training.duration.steps=2"]
    first = mpp.train(recipe, [*steps, f"output_dir={tmp_path / 'a'}"])
    half = mpp.train(recipe, [*steps, f"output_dir={tmp_path / 'b'}", "training.precision=bfloat16"])
    again = mpp.train(recipe, [*steps, f"output_dir={tmp_path / 'c'}"])
    assert same(first.encoder.model.state_dict(), again.encoder.model.state_dict())
    assert not same(first.encoder.model.state_dict(), half.encoder.model.state_dict())
    states = [json.loads(next((tmp_path / run / "checkpoints").glob("*/state.json")).read_text()) for run in "abc"]
    assert [state["precision"] for state in states] == ["float32", "bfloat16", "float32"]


def test_a_classifier_is_trained_too(tinted_images: Path, tmp_path: Path):
    recipe = written(tmp_path / "finetune.yaml", FINETUNE, tinted_images, tmp_path / "tuned")
    found = mpp.train(recipe, ["training.duration.steps=2"])
    assert (found.folder / "results.json").is_file()
    assert found.encoder.width == 32


def test_a_recipe_that_trains_nothing_and_one_that_is_not_there_are_refused(tinted_images: Path, tmp_path: Path):
    recipe = written(tmp_path / "evaluate.yaml", EVALUATE, tinted_images)
    with pytest.raises(ValueError, match="this recipe is for mpp evaluate, which trains nothing"):
        mpp.train(recipe)
    with pytest.raises(ValueError, match="nowhere"):
        mpp.train("nowhere.yaml")
