"""A study with a pilot, whole, whose finished units are kept in a folder: nothing of it runs twice, on any machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from safetensors.torch import load_file, save_file

from mpp.study.pilot import choices_of, read
from tests.support.downstream import good, refused, results, tinted_data, written
from tests.support.forkserver import Command, ForkServer
from tests.support.small_study import ALONE, GAP, PILOT, finished, kill_all, rows, unit, until

CLAIM = "study.primary=[{higher: mean_color, lower: random, by: finetune}]"
OTHER = "study.primary=[{higher: mean_color, lower: random, by: knn}]"
SMALL = ("study.arms=[random,mean_color]", "study.axis_arms=[mean_color]", CLAIM, *ALONE, PILOT,
         "evaluation.linear_probe=null", "evaluation.few_shot.shots=[1]")  # fmt: skip
TRIED = ["pilot/random/seed-1000", "pilot/mean_color/lr-0.001/seed-1000", "pilot/mean_color/lr-0.003/seed-1000"]
UNITS = [f"{arm}/seed-{seed}" for seed in (0, 1) for arm in ("random", "mean_color")]


class Kept(NamedTuple):
    """A finished study, and the folder in which its units are kept."""

    command: Command
    folder: Path
    units: Path


def recipe_in(home: Path, upstream: Path, downstream: Path) -> Path:
    return written(home / "gap.yaml", GAP.replace("UPSTREAM", str(upstream)), downstream, home / "gap")


@pytest.fixture(scope="module")
def kept(commands: ForkServer, upstream: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    home = tmp_path_factory.mktemp("kept")
    recipe = recipe_in(home, upstream, tinted_images)
    command = good(commands.run("mpp.gap", recipe, *SMALL, f"study.keep={home / 'units'}"))
    return Kept(command, home / "gap", home / "units")


@pytest.fixture
def again(
    kept: Kept, commands: ForkServer, upstream: Path, tinted_images: Path, tmp_path: Path
) -> Callable[..., Command]:
    """The same command on another machine, which has the kept units and nothing else."""
    shutil.copytree(kept.units, tmp_path / "units")
    recipe = recipe_in(tmp_path, upstream, tinted_images)
    return lambda *changes: commands.run("mpp.gap", recipe, *SMALL, f"study.keep={tmp_path / 'units'}", *changes)


def written_down(folder: Path) -> dict[str, Any]:
    """The results without what names this study's folders."""
    found = results(folder)
    for name in ("output_dir",):
        found["recipe"].pop(name)
    for name in ("keep", "report_only"):
        found["recipe"]["study"].pop(name)
    return found


def test_the_pilot_chooses_and_every_seed_runs_with_its_choice(kept: Kept):
    assert sorted(finished(kept.folder)) == sorted([*TRIED, *UNITS])
    tried = read([row for name in TRIED for row in unit(kept.folder, name)["tried"]])
    assert len([each for each in tried if each.stage == "finetune"]) == 3 * 2
    for each in tried:
        if each.stage == "finetune":
            trained = f"lr-{each.lr:g}/" if each.lr else ""
            home = kept.folder / f"pilot/{each.arm}/{trained}seed-1000" / f"finetune-0.5-lr-{each.tuning_lr:g}"
            found = results(home)
            assert (found["test"]["accuracy"], found["test"]["images"]) == (each.accuracy, 18)
            assert found["recipe"]["data"]["evaluate_on"] == "reserved"
            assert (each.images_seen, each.flops) == (96, found["flops"])
        else:
            assert (each.stage, each.images_seen) == ("pretrain", 12 * 16)
    choices = choices_of(tried)
    text = yaml.safe_load((kept.folder / "recipe.yaml").read_text())
    assert {arm: choice.model_dump() for arm, choice in choices.items()} == text["study"]["choices"]
    for name in UNITS:
        recipes, arm = unit(kept.folder, name)["recipes"], name.split("/")[0]
        assert recipes["finetune 0.5"]["optimizer"]["lr"] == choices[arm].finetuning["0.5"].lr
        assert recipes["finetune 0.5"]["data"]["reserved"] == 0.2
        if "pretrain" in recipes:
            assert recipes["pretrain"]["optimizer"]["lr"] == choices[arm].lr
    found = results(kept.folder)
    assert [dict(zip(found["pilot_columns"], row, strict=True)) for row in found["pilot"]] == [
        each._asdict() for each in tried
    ]  # fmt: skip
    assert found["recipe"]["study"]["choices"] == text["study"]["choices"]
    assert [each["name"] for each in found["units"]] == UNITS


def test_small_files_are_kept_and_no_weights(kept: Kept):
    files = [path for path in kept.units.rglob("*") if path.is_file()]
    names = {str(path.relative_to(kept.units)) for path in files}
    assert names == {
        "primary-gap.json", *(f"{name}/unit.json" for name in (*TRIED, *UNITS)),
        *(f"{name}/predictions.safetensors" for name in UNITS),
    }  # fmt: skip
    assert max(path.stat().st_size for path in files) < 40_000
    for name in (*TRIED, *UNITS):
        assert (kept.units / name / "unit.json").read_bytes() == (kept.folder / name / "unit.json").read_bytes()


def test_the_same_command_runs_nothing_again(kept: Kept, commands: ForkServer):
    before, known = finished(kept.folder), results(kept.folder)
    command = good(commands.run("mpp.gap", kept.folder.parent / "gap.yaml", *SMALL, f"study.keep={kept.units}"))
    assert " …" not in command.text
    assert finished(kept.folder) == before
    assert results(kept.folder) == known
    own = good(commands.run("mpp.gap", kept.folder / "recipe.yaml"))  # the recipe that the study wrote down
    assert " …" not in own.text
    assert results(kept.folder) == known


def test_where_the_folder_is_gone_the_kept_units_are_the_study(
    kept: Kept, again: Callable[..., Command], tmp_path: Path
):
    command = good(again())
    assert " …" not in command.text
    assert finished(tmp_path / "gap") == {}
    assert written_down(tmp_path / "gap") == written_down(kept.folder)


def test_the_report_alone_is_computed_again_from_the_kept_units(
    kept: Kept, again: Callable[..., Command], tmp_path: Path
):
    good(again("study.report_only=true"))
    found = written_down(tmp_path / "gap")
    assert found == written_down(kept.folder)
    assert [claim for claim in found["claims"] if claim["low"] is not None], "two seeds have intervals"
    shutil.rmtree(tmp_path / "units/mean_color/seed-1")
    good(again("study.report_only=true"))
    assert results(tmp_path / "gap")["unfinished"] == ["mean_color/seed-1"]
    assert not (tmp_path / "units/mean_color/seed-1").exists()
    shutil.rmtree(tmp_path / "units/pilot/random")
    refused(again("study.report_only=true"), "1 of 3 units of the pilot are not finished")


@pytest.mark.parametrize(("change", "words"), [
    ("encoder.arguments.depth=2", "encoder.arguments.depth: 1 then, 2 now"),
    ("finetuning.training.duration.steps=13", "finetune 0.5-lr-0.001.training.duration"),
    ("study.pilot.reserved=0.3", "data.reserved: 0.2 then, 0.3 now"),
])  # fmt: skip
def test_kept_units_of_another_recipe_are_refused(
    again: Callable[..., Command], tmp_path: Path, change: str, words: str
):
    refused(again(change), str(tmp_path / "units"), words, "choose another output_dir and study.keep")
    assert not list((tmp_path / "gap").rglob("log.txt"))


def test_primary_claims_cannot_be_changed_once_there_are_results(again: Callable[..., Command], tmp_path: Path):
    words = ("study.primary", "were changed after there were results", "mean_color > random by finetune",
             "mean_color > random by knn", "rename the study")  # fmt: skip
    good(again())
    refused(again(OTHER), *words)
    refused(again(OTHER, "study.report_only=true"), *words)
    known = tmp_path / "units" / "primary-gap.json"
    text = known.read_text()
    known.unlink()
    refused(again(OTHER), *words)  # the study's folder has them
    known.write_text(text)
    shutil.rmtree(tmp_path / "gap")
    refused(again(OTHER), *words)  # and so has that of the kept units
    # Under another name they are the claims of another study; nothing is run of it here.
    renamed = again(
        OTHER, f"output_dir={tmp_path / 'other'}", f"study.keep={tmp_path / 'others'}", "study.minutes=1e-9"
    )
    assert renamed.code == 75, renamed.text
    assert json.loads((tmp_path / "other" / "primary.json").read_text())["claims"][0]["by"] == "knn"


def test_seeds_cannot_be_left_out_and_claims_not_named_once_there_are_results(
    again: Callable[..., Command], tmp_path: Path
):
    good(again())
    refused(again("study.seeds=[0]"), "study.seeds", "seeds were left out after there were results: 1")
    # Another name beside the same kept units: its claims would be named after their results.
    other = f"output_dir={tmp_path / 'other'}"
    refused(again(other), "study.primary", "there are results, and", "primary-other.json", "is missing")
    good(again(other, "study.primary=[]"))


def test_a_unit_by_itself_has_the_rates_of_the_pilot_or_is_refused(again: Callable[..., Command], tmp_path: Path):
    unit = "study.only=[random/seed-1]"
    shutil.rmtree(tmp_path / "units" / "random" / "seed-1")
    good(again(unit))
    good(again())
    shutil.rmtree(tmp_path / "units" / "random" / "seed-1")
    shutil.rmtree(tmp_path / "units" / "pilot")
    shutil.rmtree(tmp_path / "gap")
    refused(again(unit), "study.only", "the pilot decides the rates of these units, and is not finished")


def test_units_of_other_test_images_are_not_compared(again: Callable[..., Command], tmp_path: Path):
    path = tmp_path / "units" / "random" / "seed-1" / "predictions.safetensors"
    found = load_file(path)
    save_file({**found, "labels": found["labels"].flip(0)}, path)
    refused(again("study.report_only=true"), "were tested on other images: they cannot be compared")


def test_refused_claims_are_not_written_down(again: Callable[..., Command]):
    refused(again(OTHER), "were changed after there were results")
    good(again())


@pytest.mark.parametrize("change", ["study.seeds=[2,3]", "study.pilot.lr=[1e-3,3e-3,1e-2]"])
def test_nor_with_other_seeds_or_a_larger_pilot(again: Callable[..., Command], change: str):
    """Or the claims would be replaced, and the old seeds could be given back."""
    refused(again(OTHER, change, "study.minutes=1e-9"), "were changed after there were results")


def test_kept_units_are_of_the_same_images_wherever_these_lie(
    again: Callable[..., Command], upstream: Path, tinted_images: Path, tmp_path: Path
):
    for name, source in (("up", upstream), ("down", tinted_images)):
        shutil.copytree(source, tmp_path / name)
    moved = (f"upstream.source={tmp_path / 'up'}", f"downstream.source={tmp_path / 'down'}")
    shutil.rmtree(tmp_path / "units" / "random" / "seed-1")
    command = good(again(*moved))
    assert command.text.count(" …") == 1, "only what was not kept is run"
    assert set(finished(tmp_path / "gap")) == {"random/seed-1"}
    assert (tmp_path / "units/random/seed-1/unit.json").is_file()

    shutil.rmtree(tmp_path / "units" / "random" / "seed-1")
    shutil.rmtree(tmp_path / "gap" / "random")
    fewer, other = tinted_data(tmp_path / "fewer", train=87), tinted_data(tmp_path / "others", seed=9)
    refused(again(f"downstream.source={fewer}"), "was run on other images", "downstream had 72 rows then", "69 now")
    refused(again(f"downstream.source={other}"), "was run on other images", "the rows themselves differ")
    assert not (tmp_path / "gap" / "random").exists()


def test_other_images_are_refused_where_every_unit_is_finished_too(again: Callable[..., Command], tmp_path: Path):
    """Or the results of one data set would be written down as those of another."""
    other = tinted_data(tmp_path / "others", seed=9)
    refused(again(f"downstream.source={other}"), "was run on other images")


def test_a_study_killed_in_its_pilot_and_in_a_unit_ends_with_the_same_numbers(
    kept: Kept, commands: ForkServer, upstream: Path, tinted_images: Path, tmp_path: Path
):
    folder = tmp_path / "gap"
    recipe = recipe_in(tmp_path, upstream, tinted_images)
    arguments = (recipe, *SMALL, "study.seeds=[0]", f"study.keep={tmp_path / 'units'}")
    command = commands.start("mpp.gap", *arguments)
    until(command, lambda: (folder / TRIED[1] / "pretrain/checkpoints/step-000000004").is_dir())
    kill_all(command)
    assert list(finished(folder)) == [TRIED[0]]
    assert not yaml.safe_load((folder / "recipe.yaml").read_text())["study"]["choices"]

    command = commands.start("mpp.gap", *arguments)
    until(command, lambda: (folder / "mean_color/seed-0/finetune-0.5/checkpoints/step-000000004").is_dir())
    kill_all(command)
    assert f"{TRIED[0]}: done before" in command.text
    done = finished(folder)
    assert set(done) == {*TRIED, "random/seed-0"}

    good(commands.run("mpp.gap", *arguments))
    assert {name: stamp for name, stamp in finished(folder).items() if name in done} == done
    for name in ("random/seed-0", "mean_color/seed-0"):
        assert rows(folder, name) == rows(kept.folder, name)
        ours, theirs = (home / name / "predictions.safetensors" for home in (folder, kept.folder))
        assert ours.read_bytes() == theirs.read_bytes()
    for name in TRIED:
        one, other = (
            [each._replace(core_seconds=0.0) for each in read(unit(home, name)["tried"])]
            for home in (folder, kept.folder)
        )
        assert one == other


def test_a_rate_of_the_grid_that_diverges_is_not_chosen(
    commands: ForkServer, upstream: Path, tinted_images: Path, tmp_path: Path
):
    """As in the search of fine-tuning: the arm has the other rates."""
    recipe = recipe_in(tmp_path, upstream, tinted_images)
    grid = "study.pilot={finetuning_lr: [1.0e-3, 1.0e+30]}"
    changes = (*SMALL, "study.arms=[random]", "study.axis_arms=[]", "study.primary=[]", "study.seeds=[0]", grid)
    good(commands.run("mpp.gap", recipe, *changes))
    chosen = yaml.safe_load((tmp_path / "gap" / "recipe.yaml").read_text())["study"]["choices"]
    assert chosen["random"]["finetuning"]["0.5"]["lr"] == 1e-3
