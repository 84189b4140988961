"""The search: every combination on train minus dev, the choice on all of train, nothing tried twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.downstream import (
    FINETUNE,
    TRAIN,
    final_weights,
    good,
    refused,
    results,
    sha,
    tinted,
    untimed,
    written,
)
from tests.support.forkserver import Command, ForkServer
from tests.support.looking import Finetune, looked, steps_said
from tests.support.runs import write_parquet

SEARCH = ("search={lr: [1e-5, 3e-3], pool: [token, avg]}", "training.duration.steps=16")
CANDIDATES = [f"lr={lr},pool={pool}" for pool in ("token", "avg") for lr in ("1e-05", "0.003")]


@pytest.fixture(scope="module")
def searched(commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory):
    """(command, folder) of a search that nothing interrupted."""
    home = tmp_path_factory.mktemp("searched")
    recipe = written(home / "recipe.yaml", FINETUNE, tinted_images, home / "run")
    return good(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", *SEARCH)), home / "run"


def test_every_combination_is_tried_on_train_minus_dev_and_the_best_retrained_on_all(
    searched: tuple[Command, Path], finetune: Finetune, pretrained: Path, tmp_path: Path
):
    _, run = searched
    found = results(run)
    assert sorted(path.name for path in (run / "search").iterdir()) == sorted(CANDIDATES)
    assert [f"lr={each['lr']:g},pool={each['pool']}" for each in found["search"]] == CANDIDATES
    for name, each in zip(CANDIDATES, found["search"], strict=True):
        candidate = run / "search" / name
        accuracy, minus_loss = looked(candidate)[16]
        assert (each["dev_accuracy"], each["dev_loss"]) == (accuracy, -minus_loss), "at the end of its run"
        state = json.loads((candidate / "checkpoints" / "step-000000016" / "state.json").read_text())
        assert state["data"]["rows"] == TRAIN * 8 // 10
        assert not (candidate / "results.json").exists(), "nobody looked at the test split"
    best = max(found["search"], key=lambda each: (each["dev_accuracy"], -each["dev_loss"]))
    assert found["chosen"] == {"lr": best["lr"], "pool": best["pool"]}
    assert found["chosen"]["lr"] == 3e-3, "a rate at which nothing is learnt loses"
    assert found["train_images"] == TRAIN
    assert found["best_on_dev"] is None
    pool, lr = found["chosen"]["pool"], found["chosen"]["lr"]
    alone = [f"encoder={{source: {pretrained}, pool: {pool}}}", f"optimizer.lr={lr}", "labels.dev=0", SEARCH[1]]
    good(finetune(*alone))
    assert sha(final_weights(run, 16)) == sha(final_weights(tmp_path / "run", 16))
    assert untimed(results(tmp_path / "run"))["test"] == found["test"]


def test_the_test_split_has_no_say_in_the_choice(
    searched: tuple[Command, Path], finetune: Finetune, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    (tmp_path / "data").mkdir()
    shutil.copy(tinted_images / "train.parquet", tmp_path / "data")
    write_parquet(tmp_path / "data" / "test.parquet", tinted(20, 8), [(row + 1) % 3 for row in range(20)])
    good(finetune(f"encoder={pretrained}", *SEARCH, f"data.source={tmp_path / 'data'}"))
    now, then = results(tmp_path / "run"), results(searched[1])
    assert (now["chosen"], now["search"]) == (then["chosen"], then["search"])
    assert now["test"] != then["test"]
    assert sha(final_weights(tmp_path / "run", 16)) == sha(final_weights(searched[1], 16))


def test_a_search_killed_in_its_middle_goes_on_without_repeating_what_is_done(
    searched: tuple[Command, Path], finetune: Finetune, pretrained: Path, tmp_path: Path
):
    run, given = tmp_path / "run", (f"encoder={pretrained}", *SEARCH)
    third = run / "search" / CANDIDATES[2]
    command = finetune(*given, start=True)
    command.until(lambda: (third / "checkpoints" / "step-000000004").is_dir())
    command.kill()
    command.wait()
    done = {path: path.stat().st_mtime_ns for name in CANDIDATES[:2] for path in files(run / "search" / name)}
    assert done
    assert not (run / "results.json").exists()

    command = finetune(*given, start=True)
    command.until(lambda: (run / "checkpoints" / "step-000000004").is_dir())
    command.kill()
    command.wait()
    tried = {path: path.stat().st_mtime_ns for path in files(run / "search")}
    assert {path: path.stat().st_mtime_ns for path in done} == done
    text = command.text
    assert [name for name in CANDIDATES if f"\n{name}\n" in text] == CANDIDATES[2:]

    said = good(finetune(*given))
    assert {path: path.stat().st_mtime_ns for path in tried} == tried
    assert steps_said(said)[0] > 4
    assert untimed(results(run)) == untimed(results(searched[1]))
    assert sha(final_weights(run, 16)) == sha(final_weights(searched[1], 16))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_finished_search_says_so(commands: ForkServer, searched: tuple[Command, Path], pretrained: Path):
    said = good(commands.run("mpp.finetune", searched[1].parent / "recipe.yaml", f"encoder={pretrained}", *SEARCH))
    assert "is finished" in said.text


def test_another_grid_in_the_folder_of_a_finished_search_is_refused(
    commands: ForkServer, searched: tuple[Command, Path], pretrained: Path
):
    recipe = searched[1].parent / "recipe.yaml"
    wider = "search={lr: [1e-5, 3e-3, 1e-2], pool: [token, avg]}"
    refused(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", wider, SEARCH[1]), "search")


def test_a_search_that_is_to_stop_early_is_refused(finetune: Finetune):
    refused(finetune(*SEARCH, "early_stopping.patience=2"), "early_stopping", "search")


def test_rates_that_diverge_are_left_behind(finetune: Finetune, tmp_path: Path):
    wild = ["search.lr=[1e30,3e-3]", "training.max_skipped=2", "training.duration.steps=8"]
    good(finetune(*wild))
    found = results(tmp_path / "run")
    assert found["chosen"]["lr"] == 3e-3
    assert [each["dev_accuracy"] is None for each in found["search"]] == [True, False]
    (tmp_path / "run" / "results.json").unlink()
    left = tmp_path / "run" / "search" / "lr=1e+30"
    before = {path: path.stat().st_mtime_ns for path in left.rglob("*") if path.is_file()}
    good(finetune(*wild))
    assert {path: path.stat().st_mtime_ns for path in left.rglob("*") if path.is_file()} == before, "it diverged before"
    assert results(tmp_path / "run")["search"] == found["search"]
    found = finetune("search.lr=[1e30]", *wild[1:], f"output_dir={tmp_path / 'all'}")
    refused(found, "none of the 1 runs", code=1)


@pytest.mark.parametrize("setting", ["search.lr=[1e-3,1e-2]", "early_stopping.patience=2"])
def test_a_choice_without_a_dev_split_is_refused(finetune: Finetune, setting: str, tmp_path: Path):
    refused(finetune("labels.dev=0", setting), "labels.dev")
    assert not (tmp_path / "run" / "checkpoints").exists()
