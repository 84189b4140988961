"""Some classes of a data set, and reserved images: which rows, under which labels, whatever the seed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mpp.data.label_subsets import reserve
from mpp.data.settings import DataSettings
from mpp.data.splits import Splits, open_splits, open_table
from mpp.recipe import load_recipe, same_data
from tests.support.downstream import FINETUNE, written
from tests.support.forkserver import ForkServer, good, refused
from tests.support.runs import RECIPES, arguments, encoded, older_by, picture, pretrain

NAMES = ["ant", "bee", "cow", "dog", "eel"]
TRAIN = [number % 5 for number in range(60)]
TEST = [(number * 3) % 5 for number in range(20)]


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images to train on and twenty to test on, of five classes."""
    folder = tmp_path_factory.mktemp("animals")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    for split, labels, first in (("train", TRAIN, 0), ("test", TEST, 100)):
        images = [{"bytes": encoded(picture(16, 16, first + i)), "path": f"{i}.png"} for i in range(len(labels))]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(str(folder / f"{split}.parquet"))
    return folder


def opened(source: Path | str, seed: int = 0, *, labelled: bool = True, **settings: Any) -> Splits:
    return open_splits(DataSettings(source=str(source), image_size=16, **settings), seed, labelled=labelled)


def rows_of(table: Any) -> list[int]:
    return table.source_rows.tolist()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("classes", [(0, 1), (4, 2), (1, 2, 3), (0, 1, 2, 3, 4)])
def test_the_images_of_the_chosen_classes_and_no_others_are_taken_and_renumbered(
    animals: Path, classes: tuple[int, ...], labelled: bool
):
    splits = opened(animals, labelled=labelled, classes=classes)
    chosen = sorted(classes)
    for table, labels, first in ((splits.train, TRAIN, 0), (splits.validation, TEST, 60)):
        expected = np.flatnonzero(np.isin(labels, chosen))
        assert rows_of(table) == (expected + first).tolist()
        assert table.labels is not None
        assert [chosen[label] for label in table.labels] == [labels[row] for row in expected]
        assert table.class_names == [NAMES[number] for number in chosen]
        contents = [picture(16, 16, int(row) + (100 if first else 0)) for row in expected]
        assert [table.encoded(row) for row in range(len(table))] == [encoded(image) for image in contents]
    assert f"{12 * len(chosen)} of 60, held out {4 * len(chosen)} (test)" in splits.summary


@pytest.mark.parametrize(
    ("classes", "words"),
    [((0, 1, 2), "classes 0 to 2 of 5: 36 of 60"), ((3,), "class 3 of 5: 12 of 60"), ((0, 3), "classes 0, 3 of 5: 24")],
)
def test_the_line_at_the_start_says_which_classes(animals: Path, classes: tuple[int, ...], words: str):
    assert words in opened(animals, labelled=False, classes=classes).summary


def test_numbers_of_images_are_chosen_among_those_of_the_classes(animals: Path):
    for seed in range(4):
        splits = opened(animals, seed, classes=(1, 3), images=10, validation_images=3)
        assert [len(table) for table in splits] == [10, 3]
        assert {TRAIN[row] for row in rows_of(splits.train)} == {1, 3}
        assert {TEST[row - 60] for row in rows_of(splits.validation)} <= {1, 3}


def test_all_rows_of_a_split_are_limited_to_the_classes_too(animals: Path):
    table = open_table(DataSettings(source=str(animals), classes=(2,)))
    assert rows_of(table) == np.flatnonzero(np.array(TRAIN) == 2).tolist()
    assert table.class_names == ["cow"]
    assert table.labels is not None
    assert not table.labels.any()


def test_class_folders_with_a_held_out_tenth_keep_it_apart(tmp_path: Path):
    for number in range(60):
        place = tmp_path / NAMES[number % 5]
        place.mkdir(exist_ok=True)
        (place / f"{number:02d}.png").write_bytes(encoded(picture(seed=number)))
    whole, some = opened(tmp_path), opened(tmp_path, classes=(0, 1, 2, 3))
    assert set(rows_of(some.train)) < set(rows_of(whole.train))
    assert set(rows_of(some.validation)) <= set(rows_of(whole.validation))
    assert some.train.class_names == NAMES[:4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": (1, 7, 9)}, r"classes has 7, 9, but .* has 5 classes: 0 ant, 1 bee, 2 cow, 3 dog, 4 eel"),
        ({"classes": (2,)}, r"classes names 2 alone, and classification needs two"),
        ({"classes": (0, 1), "split": "train[:1]"}, r"classes without an image in .*training split: 1 \(bee\)"),
        ({"classes": (0, 1), "label_column": "labels"}, r"no column 'labels' among .*; did you mean label\?"),
        ({"classes": (0, 1), "validation_split": "test[1:2]"}, r"validation split is empty"),
        ({"reserved": 0.5, "label_column": "labels"}, r"no column 'labels'"),
        ({"reserved": 0.5, "split": "train[:5]"}, r"no class has two images, one of which could be reserved"),
    ],
)
def test_what_cannot_be_chosen_is_named(animals: Path, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        opened(animals, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, "classes is empty"),
        ({"classes": (3, 1, 3)}, "classes names 3 more than once"),
        ({"classes": (-1,)}, "at least 0"),
        ({"evaluate_on": "reserved"}, "give reserved a share above 0"),
        ({"reserved": 1.0}, "below 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DataSettings(**change)


def test_images_without_labels_have_no_classes_to_choose(tmp_path: Path):
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(seed=number)))
    for change in ({"classes": (0, 1)}, {"reserved": 0.1}):
        with pytest.raises(ValueError, match="labels are needed"):
            opened(tmp_path, labelled=False, **change)


# Reserved images


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_a_share_of_each_class_is_reserved_the_same_for_every_seed(animals: Path, share: float):
    whole = opened(animals)
    seen = set()
    for seed in range(4):
        kept = opened(animals, seed, reserved=share)
        pilot = opened(animals, seed, reserved=share, evaluate_on="reserved")
        assert rows_of(kept.train) == rows_of(pilot.train)
        assert rows_of(kept.validation) == rows_of(whole.validation)
        assert sorted(rows_of(pilot.train) + rows_of(pilot.validation)) == rows_of(whole.train)
        count = max(int(12 * share + 0.5), 1)
        assert np.bincount([TRAIN[row] for row in rows_of(pilot.validation)]).tolist() == [count] * 5
        assert pilot.validation.labels is not None
        assert pilot.validation.labels.tolist() == [TRAIN[row] for row in rows_of(pilot.validation)]
        seen.add(tuple(rows_of(pilot.validation)))
        few = opened(animals, seed, reserved=share, images=10)
        assert set(rows_of(few.train)) < set(rows_of(kept.train))
    assert len(seen) == 1
    np.testing.assert_array_equal(reserve(TRAIN, share)[1], seen.pop())


def test_the_reserved_images_of_a_class_do_not_depend_on_the_other_classes(animals: Path):
    every = rows_of(opened(animals, reserved=0.3, evaluate_on="reserved").validation)
    some = opened(animals, reserved=0.3, evaluate_on="reserved", classes=(1, 4))
    assert rows_of(some.validation) == [row for row in every if TRAIN[row] in (1, 4)]
    assert not {*rows_of(some.train)} & {*every}


def test_the_line_at_the_start_says_what_is_reserved(animals: Path):
    assert opened(animals, reserved=0.1).summary.endswith(", reserved 5, train on 55 of train, held out 20 (test)")
    pilot = opened(animals, reserved=0.1, evaluate_on="reserved")
    assert pilot.summary.endswith(", train on 55 of train, held out 5 (reserved 10% of train)")
    assert pilot.validation.split == "reserved 10% of train"


# Studies and whole runs


HALF = "embedded, classes: [0, 1, 2, 3, 4]"


@pytest.mark.parametrize(
    ("up", "down", "refuses"),
    [
        (HALF, "embedded:a, classes: [5, 6, 7, 8, 9]", False),
        (HALF, "embedded:a, classes: [4, 5, 6]", True),
        (HALF, "embedded:a", True),
        ("embedded", "embedded, classes: [5, 6]", True),
        (HALF, "embedded, classes: [5, 6], label_column: label", True),
    ],
)
def test_halves_of_a_data_set_without_a_common_class_are_two_data_sets(up: str, down: str, refuses: bool):
    given = [
        f"{part}={{source: {source}, image_size: 32}}" for part, source in (("upstream", up), ("downstream", down))
    ]
    if refuses:
        with pytest.raises(ValueError, match="upstream and downstream are both embedded, train"):
            load_recipe(RECIPES / "gap.yaml", given)
    else:
        recipe = load_recipe(RECIPES / "gap.yaml", given)
        assert not same_data(recipe.upstream, recipe.downstream)


def test_pre_training_and_fine_tuning_on_some_classes(animals: Path, commands: ForkServer, tmp_path: Path):
    """Without labels too only the chosen images are read; a run that is resumed has to choose the same."""
    run = tmp_path / "run"
    given = ["training.duration.steps=2", "checkpoint.every.steps=2", "data.classes=[0, 1, 2]"]
    said = good(pretrain("mean_color.yaml", arguments(run, animals, *given))).text
    assert "classes 0 to 2 of 5: 36 of 60, held out 12 (test)" in said
    again = pretrain("mean_color.yaml", arguments(run, animals, *given[:2], "data.classes=[0, 1, 3]"))
    refused(again, "data.classes=[0, 1, 2] then, [0, 1, 3] now")

    recipe = written(tmp_path / "recipe.yaml", FINETUNE, animals, tmp_path / "tuned")
    tuned = ("data.classes=[4, 3]", "data.reserved=0.25", "data.evaluate_on=reserved", "training.duration.steps=2")
    said = good(commands.run("mpp.finetune", recipe, f"encoder={run}", *tuned)).text
    assert re.search(r"classes 3 to 4 of 5: 24 of 60, train on 18 of train, held out 6 \(reserved 25% of train\)", said)
    found = json.loads((tmp_path / "tuned" / "results.json").read_text())
    assert found["test"]["images"] == 6
    config = json.loads((tmp_path / "tuned" / "classifier" / "config.json").read_text())
    assert config["label_names"] == ["dog", "eel"]


def test_a_run_that_is_older_than_these_settings_is_resumed(animals: Path, tmp_path: Path):
    run, given = tmp_path / "run", ("training.duration.steps=4", "checkpoint.every.steps=2")
    good(pretrain("mean_color.yaml", arguments(run, animals, *given)))
    older_by(run, "classes", "reserved", "evaluate_on")
    assert "is finished" in good(pretrain("mean_color.yaml", arguments(run, animals, *given))).text
    refused(pretrain("mean_color.yaml", arguments(run, animals, *given, "data.reserved=0.1")), "data.reserved=0.0 then")
