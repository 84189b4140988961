"""`mpp.train`: runs from Python, several in one process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

import mpp
from mpp.training.metrics_log import Journal
from tests.support.downstream import EVALUATE, FINETUNE, PRETRAIN, good, results, written
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
    assert found.test is None
    assert repr(found).startswith(f"run in {found.folder}: 8 steps\n  Held out, the loss on masked patches is ")
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
    test = json.loads((found.folder / "results.json").read_text())["test"]
    assert found.test == test
    lines = repr(found).splitlines()
    assert lines[0] == f"run in {found.folder}: 2 steps"
    assert lines[1].startswith(f"  test split: accuracy {test['accuracy']:.2%} of 45 images (standard error")
    assert len(lines) == 3, "and not the network"
    images = [Path(name) for name in _saved(tinted_images, tmp_path / "test")]
    classes = mpp.classify(found.folder, images)
    assert classes.names == ["one", "two", "three"]
    assert classes.probabilities.shape == (45, 3)
    assert classes.probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    right = sum(name == classes.names[number % 3] for number, name in enumerate(classes.predicted))
    assert right == round(test["accuracy"] * 45), "what the run counted on its test split"


def _saved(data: Path, folder: Path) -> list[str]:
    """The test images as files, in their order."""
    folder.mkdir()
    cells = parquet.read_table(data / "test.parquet")["image"].to_pylist()
    for number, cell in enumerate(cells):
        (folder / f"{number:02d}.png").write_bytes(cell["bytes"])
    return [str(folder / f"{number:02d}.png") for number in range(len(cells))]


def test_an_evaluation_from_python_is_that_of_the_command(tinted_images: Path, tmp_path: Path, commands: ForkServer):
    recipe = written(tmp_path / "evaluate.yaml", EVALUATE, tinted_images)
    found = mpp.scores(recipe, [f"output_dir={tmp_path / 'python'}"])
    good(commands.run("mpp.evaluate", recipe, f"output_dir={tmp_path / 'command'}"))
    theirs = results(tmp_path / "command")
    assert found.results["scores"] == theirs["scores"]
    assert found.accuracy["knn"] == next(iter(theirs["scores"]["knn"]["headline"]["k"].values()))
    assert found.accuracy["few_shot"] == theirs["scores"]["few_shot"]["headline"]["shots"]["5"]["mean"]
    assert found.chance == 1 / 3
    assert "Verdict: the encoder is" in repr(found)
    with pytest.raises(ValueError, match="this recipe is for mpp pretrain, and not for mpp evaluate"):
        mpp.scores("mean_color")


def test_a_recipe_that_trains_nothing_and_one_that_is_not_there_are_refused(tinted_images: Path, tmp_path: Path):
    recipe = written(tmp_path / "evaluate.yaml", EVALUATE, tinted_images)
    with pytest.raises(ValueError, match=r"this recipe is for mpp evaluate, which trains no encoder: mpp\.scores"):
        mpp.train(recipe)
    with pytest.raises(ValueError, match="nowhere"):
        mpp.train("nowhere.yaml")
