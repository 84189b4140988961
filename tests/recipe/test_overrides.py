"""`key=value` on the command line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mpp.recipe import PretrainRecipe, RecipeError, load_recipe, open_recipe
from mpp.settings import Duration
from tests.support.small_recipe import GOOD, Classify, Guess, Pixels, Tiles, block, load, wrong


def test_overrides_replace_what_the_file_says(recipe: Path) -> None:
    tree = load(GOOD, "seed=5", "loop.lr=1e-8", "source.scale=[0.05, 1.0]", "source.column=null", "source.extra={a: 1}")
    assert (tree.seed, tree.loop.lr, tree.source.scale) == (5, 1e-8, (0.05, 1.0))
    assert (tree.source.column, tree.source.extra) == (None, {"a": 1})


@pytest.mark.parametrize("text", ["2024", "a: b", "[x", "#1", "x #1", "true", "3e-4", "with space", "k=v", "*x"])
def test_text_is_taken_as_it_is(recipe: Path, text: str) -> None:
    assert load(GOOD, f"source.path={text}", f"source.column={text}").source.column == text


def test_quotes_and_null_still_mean_something_where_text_is_expected(recipe: Path) -> None:
    assert load(GOOD, "source.column='null'").source.column == "null"
    assert load(GOOD, "source.column=null").source.column is None
    assert load(GOOD, "source.column=").source.column is None


def test_a_duration_takes_the_unit_of_the_command_line(recipe: Path) -> None:
    assert load(GOOD, "loop.duration.steps=100").loop.duration == Duration(steps=100)
    assert load(GOOD, "loop.duration={images: 5e4}").loop.duration == Duration(images=50000)
    assert load(GOOD, "loop.every.epochs=0.5").loop.every == Duration(epochs=0.5)
    message = wrong(GOOD, "loop.duration.steps=100", "loop.duration.epochs=1")
    assert block(message, "command line: loop.duration") == [
        "a duration needs exactly one of steps, epochs or images; found steps and epochs",
        "found: {steps: 100, epochs: 1}",
    ]


def test_another_kind_drops_the_keys_of_the_old_one(recipe: Path) -> None:
    tree = load(GOOD, "task.target.kind=pixels")
    assert isinstance(tree.task, Guess)
    assert tree.task.target == Pixels(bits=4)
    assert load(GOOD, "task.kind=classify").task == Classify(kind="classify", head="mlp")


def test_the_same_kind_drops_nothing(recipe: Path) -> None:
    tree = load(GOOD, "task.target.kind=tiles", "task.kind=guess")
    assert isinstance(tree.task, Guess)
    assert tree.task.target == Tiles(bits=4, cells=2)


def test_another_kind_keeps_the_mistakes_of_the_command_line(recipe: Path) -> None:
    for overrides in (
        ["task.target.kind=pixels", "task.target.cells=3"],
        ["task.target.cells=3", "task.target.kind=pixels"],
    ):
        lines = block(wrong(GOOD, *overrides), "command line: task.target.cells")
        assert lines == ["unknown key", "cells belongs to kind: tiles", "allowed: kind, bits, normalize"]


def test_the_order_of_overrides_does_not_matter(recipe: Path) -> None:
    overrides = ["task.target={kind: pixels}", "task.target.normalize=true", "task.kind=guess", "source.extra.a.b=1"]
    expected = load(GOOD, *overrides)
    for seed in range(5):
        assert load(GOOD, *random.Random(seed).sample(overrides, len(overrides))) == expected
    assert load(GOOD, "seed=1", "seed=2").seed == 2


def test_a_section_may_exist_on_the_command_line_only(recipe: Path) -> None:
    tree = load("seed: 1\n", "source.path=x", "task.kind=classify", "task.smoothing=0.1")
    assert tree.task == Classify(kind="classify", smoothing=0.1)


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=1", ".seed=1", "--seed=1", ""])
def test_a_malformed_override_is_shown_how(recipe: Path, override: str) -> None:
    message = wrong(GOOD, override)
    assert message.startswith(f"command line: {override or repr('')}\n")
    assert "write key=value, as in" in message


def test_a_space_for_the_equals_sign_is_shown_how() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("photos", ["data.source", "../photos", "seed=1"])
    assert " ".join(str(caught.value).split()) == (
        "command line: data.source ../photos not an override: write key=value, without a space, as in "
        "data.source=../photos"
    )
    with pytest.raises(RecipeError, match=r"as in data\.source=\.\./photos"):
        load_recipe("photos", ["../photos"])


def test_nothing_is_overridden_inside_a_scalar(recipe: Path) -> None:
    lines = block(wrong(GOOD, "seed.x=3"), "command line: seed.x")
    assert lines == ["seed has no settings in it", "found: 3 in r.yaml:1", "allowed: seed=…, integer"]
    assert "loop.lr has no settings in it" in wrong("seed: 1\nsource: {path: x}\ntask: {kind: guess}\n", "loop.lr.x=3")
    assert "source.names has no settings in it" in wrong(GOOD, "source.names.0=x")


def test_a_value_that_is_no_yaml_is_named(recipe: Path) -> None:
    assert block(wrong(GOOD, "seed=[1"), "command line: seed")[-1] == "found: '[1'"
    assert "given twice" in wrong(GOOD, "source.extra={a: 1, a: 2}")


def minimal(*overrides: str) -> PretrainRecipe:
    Path("minimal.yaml").write_text("command: pretrain\noutput_dir: runs/a\nobjective: {kind: masked_patch}\n")
    return load_recipe("minimal.yaml", overrides)


def test_pretrain_recipe_and_its_overrides(recipe: Path) -> None:
    assert minimal("training.duration.steps=100").training.duration == Duration(steps=100)
    assert minimal("objective.target.cells=8", "objective.target.kind=downsized") == minimal(
        "objective.target={kind: downsized, cells: 8}"
    )
    with pytest.raises(RecipeError, match=r"objective\.target\.cells"):
        minimal("objective.target.cells=8")


def test_warm_up_and_decay_of_the_file_shrink_with_a_run_that_they_do_not_fit_into() -> None:
    document, recipe = open_recipe("photos", ["training.duration.epochs=4"], "pretrain")
    assert recipe.optimizer.warmup == Duration(epochs=0.16)
    assert recipe.optimizer.decay == Duration(epochs=0.8)
    [note] = document.notes
    assert note.endswith("warmup 2 epochs → 0.16 epochs, decay 10 epochs → 0.8 epochs")
    again = open_recipe("photos", ["training.duration={epochs: 4}"], "pretrain")[1]
    assert again == recipe, "however it is written"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.duration.epochs=12"],  # just long enough: the run is that of earlier versions
        ["training.duration.epochs=4", "optimizer.decay.epochs=10"],  # asked for: refused when the run starts
        ["training.duration.epochs=4", "optimizer.warmup.epochs=1"],
        ["training.duration.steps=4"],  # in another unit nobody knows yet whether they fit
    ],
)
def test_a_schedule_that_fits_or_was_asked_for_stays(overrides: list[str]) -> None:
    document, recipe = open_recipe("photos", overrides, "pretrain")
    assert recipe.optimizer.decay == Duration(epochs=10)
    assert not document.notes
