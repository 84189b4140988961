"""Recipes as they are written, compared, explained and shipped."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import jsonschema
import pytest
import yaml
from pydantic import Field

from mpp.recipe import PretrainRecipe, differences, help_text, load_recipe, recipe_text, write_recipe
from mpp.recipe.dump import plain
from mpp.recipe.parse import read_document
from mpp.recipe.tree import COMMANDS
from mpp.recipe.yaml import in_line
from mpp.settings import Duration
from mpp.type_hints import every_setting, read_hint, resolve
from tests.support.small_recipe import GOOD, Classify, Guess, Loop, Pixels, Source, Tree, load, read

REPOSITORY = Path(__file__).parents[2]


# Writing and comparing


ODD = [
    *("3e-4", "null", "~", "", "yes", "On", "true", "1:30", "010", "0x1f", "2024-01-01", "1_000", ".inf", ".nan"),
    *(
        "a: b",
        "- a",
        "#x",
        "x #y",
        "with space ",
        "C:\\a b",
        "'",
        '"',
        "[",
        "{a}",
        "*a",
        "&a",
        "!a",
        "%",
        "@",
        "<<",
        "=",
    ),
    *("line\nbreak", "\n", "\t", "\r", "\x85", "\u2028", "\x00", "é—ü", "🙂", "x" * 300, "word " * 60),
]


def test_what_is_written_reads_back_equal(recipe: Path) -> None:
    draw = random.Random(0)
    numbers = [3e-4, 1e-8, 1e16, 5e-324, 1.7976931348623157e308, 1.0, 1 / 3, 123456789.123456789, 1e22]
    for number in range(60):
        tree = Tree(
            seed=draw.choice([0, -1, 10**20]),
            source=Source(
                path=ODD[number % len(ODD)],
                column=draw.choice([None, *ODD]),
                size=draw.choice([None, 1, 10**12]),
                scale=(draw.random() * 1e-9, draw.random() + 0.1),
                names=tuple(draw.sample(ODD, draw.randrange(4))),
                extra={draw.choice(ODD): draw.choice([None, True, 1.0, [1, [2.5, None]], {"a": {"b": 1}}, {}, []])},
                cache=draw.random() < 0.5,
                threads=draw.choice([3, "auto"]),
            ),
            task=draw.choice(
                [Guess(kind="guess", target=Pixels(normalize=True)), Classify(kind="classify"), Guess(kind="guess")]
            ),
            loop=Loop(lr=draw.choice(numbers), every=draw.choice([None, Duration(images=50000), Duration(epochs=0.1)])),
        )
        write_recipe(tree, "written.yaml")
        back = read("written.yaml")
        assert back == tree
        assert repr(back) == repr(tree)
        assert yaml.safe_load(recipe_text(tree)) == plain(tree)  # for readers of YAML 1.1, too


def test_written_text_is_text_for_every_reader_of_yaml() -> None:
    assert [yaml.safe_load(in_line(text)) for text in ODD] == ODD
    assert yaml.safe_load(in_line(1e-8)) == 1e-8


def test_the_written_recipe_follows_the_classes(recipe: Path) -> None:
    text = recipe_text(load(GOOD, "loop.every.images=5e4"))
    assert "  duration: {epochs: 2.0}\n  every: {images: 50000}\n" in text
    assert "  scale: [0.08, 1.0]\n" in text
    assert "  target:\n    kind: tiles\n    bits: 4\n    cells: 2\n" in text
    assert list(yaml.safe_load(text)) == list(Tree.model_fields)


def test_differences_name_each_setting_once(recipe: Path) -> None:
    old = load(GOOD)
    assert differences(old, load(GOOD)) == []
    assert differences(
        old, load(GOOD, "loop.duration.steps=9", "seed=4", "source.extra.a=1", "task.target.cells=8")
    ) == [
        ("seed", 3, 4),
        ("source.extra.a", None, 1),
        ("task.target.cells", 2, 8),
        ("loop.duration", {"epochs": 2.0}, {"steps": 9}),
    ]
    assert differences(old, load(GOOD, "task.target.kind=pixels")) == [("task.target.kind", "tiles", "pixels")]


# Help and schema


def test_help_lists_every_setting_at_80_columns() -> None:
    text = help_text(Tree)
    assert all(len(line) < 80 for line in text.splitlines())
    for expected in (
        "seed=0  (integer)\n    Of every draw.",
        "source\n    Where it comes from.\n  source.path=…  (text)\n      A folder.",
        "source.scale=[0.08, 1]  (list of 2 numbers)",
        "source.threads=auto  (integer or auto)",
        "task.kind=…  (guess or classify)\ntask.kind=guess:\n    Guess what was there.\n  task.head=linear",
        "  task.target.kind=tiles  (tiles or pixels)\n  task.target.kind=tiles:\n      Coloured tiles.\n",
        "    task.target.bits=3  (integer, from 1 to 8)\n        Bits a channel.",
        "task.kind=classify:\n",
        "loop.duration.epochs=1  (duration)",
        "loop.every=null  (duration or null)",
    ):
        assert expected in text


def test_one_walk_finds_every_setting() -> None:
    paths = {".".join(map(str, keys)) for keys, _ in every_setting(Tree)}
    assert {"seed", "source.path", "task.head", "task.target.normalize", "task.smoothing", "loop.duration"} <= paths
    values = {"task": {"kind": "guess", "target": {"kind": "pixels"}}}
    hint = resolve(Tree, ("task", "target", "normalize"), values)
    assert hint is not None
    assert hint.words() == "true or false"
    assert resolve(Tree, ("task", "target", "cells"), values) is None


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | None, "integer or null"),
        (Optional[Annotated[int, Field(gt=0)]], "integer, above 0, or null"),  # noqa: UP045
        (Annotated[float, Field(ge=0, le=1)], "number, from 0 to 1"),
        (Literal["a", "b"] | None, "a, b or null"),
        (list[Annotated[float, Field(ge=0)]], "list of numbers, each at least 0"),
        (tuple[float, float, float], "list of 3 numbers"),
        (dict[str, int], "mapping"),
        (Any, "any value"),
    ],
)
def test_types_in_plain_words(annotation: Any, words: str) -> None:
    assert read_hint(annotation).words() == words


# The real recipes


RECIPES = sorted((REPOSITORY / "recipes").glob("**/*.yaml"))


def test_recipes_are_shipped() -> None:
    assert {path.name for path in RECIPES} >= {
        "mean_color.yaml",
        "downsized.yaml",
        "full_patch.yaml",
        "supervised.yaml",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_shipped_recipe_loads_and_reads_back_equal(path: Path, tmp_path: Path) -> None:
    loaded = load_recipe(path)
    write_recipe(loaded, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == loaded


def test_a_section_left_out_is_as_good_as_an_empty_one() -> None:
    for keys, setting in every_setting(PretrainRecipe):
        if setting.model not in (None, Duration):
            assert setting.default == type(setting.default)(), keys


def test_every_setting_says_what_it_is_for() -> None:
    for keys, setting in every_setting(PretrainRecipe):
        assert setting.doc or setting.model or setting.variants, keys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY)


def test_help_and_errors_come_at_once() -> None:
    program = (
        "import sys; from mpp.recipe import PretrainRecipe, help_text; print(help_text(PretrainRecipe)); "
        "sys.exit(str({'torch', 'timm', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules) or ''))"
    )
    before = os.times()
    done = run("-c", program)
    after = os.times()
    assert done.stderr.strip() == ""
    assert "objective.target.kind=mean_color:" in done.stdout
    assert all(len(line) < 80 for line in done.stdout.splitlines())
    spent = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    assert spent < 3, "seconds of a processor, whatever else the machine does"


def test_recipes_can_be_shown_and_described_to_editors(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("command: pretrain\noutput_dir: runs/a\nobjective: {kind: supervised}\n")
    shown = run("-m", "mpp.recipe", "show", str(path), "seed=7")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["seed"] == 7
    failed = run("-m", "mpp.recipe", "show", str(path), "sed=7")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "did you mean seed?" in failed.stderr
    assert "Traceback" not in failed.stderr
    schema = json.loads(run("-m", "mpp.recipe", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == list(PretrainRecipe.model_fields)
    assert schema["$defs"]["DataSettings"]["properties"]["source"]["description"].startswith("`embedded`")


def complaints(recipe: dict[str, Any]) -> list[str]:
    """What an editor that knows the schema underlines."""
    schema = COMMANDS[recipe["command"]].model_json_schema()
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(recipe)]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_editors_find_nothing_wrong_with_our_recipes(path: Path):
    assert complaints(read_document(path).values) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": {"duration": {}}},
        {"training": {"duration": {"steps": 1, "epochs": 1}}},
        {"training": {"duration": {"minutes": 1}}},
        {"data": {"image_size": 0}},
        {"encoder": 3},
        {"objektive": {}},
    ],
    ids=str,
)
def test_editors_find_what_we_would_refuse(wrong: dict[str, Any]):
    recipe = {"command": "pretrain", "output_dir": "runs/a", "objective": {"kind": "supervised"}}
    assert complaints(recipe) == complaints({**recipe, "encoder": "runs/mean_color"}) == []
    assert complaints({**recipe, **wrong})


@pytest.mark.parametrize("path", [path for path in RECIPES if "kind: downsized" in path.read_text()], ids=str)
def test_shipped_recipes_really_downsize(path: Path):
    recipe: Any = load_recipe(path)
    patch_size = recipe.encoder.patch_size or int(recipe.encoder.name.split("patch")[1].split("_")[0])
    assert recipe.objective.target.cells < patch_size


def test_supervised_on_imagenet_follows_table_3_of_the_vit_paper():
    recipe: Any = load_recipe(REPOSITORY / "recipes" / "imagenet" / "supervised.yaml")
    optimizer, training = recipe.optimizer, recipe.training
    assert (optimizer.lr, optimizer.weight_decay, optimizer.schedule) == (3e-3, 0.3, "cosine")
    assert (optimizer.warmup.steps, training.duration.epochs, training.batch_size) == (10_000, 300, 4096)
    assert (training.clip_grad, recipe.objective.head) == (1.0, "pre_logits")
    assert recipe.encoder.arguments == {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1}
