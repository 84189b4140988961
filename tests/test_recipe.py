from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
import yaml
from pydantic import Field, model_validator

from mpp.recipe import (
    PretrainRecipe,
    RecipeError,
    differences,
    help_text,
    load_recipe,
    load_settings,
    recipe_text,
    write_recipe,
)
from mpp.recipe.dialect import in_line
from mpp.recipe.reading import read_value
from mpp.recipe.schema import every_setting, read_hint, resolve
from mpp.recipe.writing import plain
from mpp.settings import Duration, Settings

REPOSITORY = Path(__file__).parent.parent


class Tiles(Settings):
    """Coloured tiles."""

    kind: Literal["tiles"] = "tiles"
    bits: int = Field(default=3, ge=1, le=8)
    """Bits a channel."""
    cells: int = 4


class Pixels(Settings):
    """Plain pixels."""

    kind: Literal["pixels"] = "pixels"
    bits: int = Field(default=3, ge=1, le=8)
    normalize: bool = False


class Guess(Settings):
    """Guess what was there."""

    kind: Literal["guess"]
    head: Literal["linear", "mlp"] = "linear"
    target: Annotated[Tiles | Pixels, Field(discriminator="kind")] = Tiles()


class Classify(Settings):
    """Name what is there."""

    kind: Literal["classify"]
    head: Literal["linear", "mlp"] = "linear"
    smoothing: float = Field(default=0.0, ge=0, lt=1)


class Source(Settings):
    """Where it comes from."""

    path: str
    """A folder."""
    column: str | None = None
    size: int | None = Field(default=None, ge=1)
    scale: tuple[float, float] = (0.08, 1.0)
    names: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)
    cache: bool = False
    threads: int | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> Source:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must rise; found {self.scale[0]:g} before {self.scale[1]:g}")
        return self


class Loop(Settings):
    """How long."""

    lr: float = Field(default=1e-3, gt=0)
    duration: Duration = Duration(epochs=1)
    every: Duration | None = None


class Tree(Settings):
    """A small recipe."""

    seed: int = 0
    """Of every draw."""
    source: Source
    task: Annotated[Guess | Classify, Field(discriminator="kind")]
    loop: Loop = Loop()


GOOD = """\
seed: 3
source:
  path: here
task:
  kind: guess
  head: mlp
  target: {kind: tiles, bits: 4, cells: 2}
loop:
  lr: 3e-4
  duration: {epochs: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD)
    return Path("r.yaml")


def load(text: str, *overrides: str) -> Tree:
    Path("r.yaml").write_text(text)
    return load_settings(Tree, "r.yaml", overrides)


def wrong(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert all(len(line) < 80 for line in str(caught.value).splitlines())
    return str(caught.value)


def block(message: str, heading: str) -> list[str]:
    """The lines of the one problem under `heading`, without their indentation, continued lines joined."""
    [found] = [part for part in message.split("\n\n") if part.splitlines()[0] == heading]
    lines: list[str] = []
    for line in found.splitlines()[1:]:
        if line.startswith("     "):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.strip())
    return lines


# Reading


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("1E5", 1e5),
        ("5e+4", 5e4),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1", -1),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        ("on", "on"),
        ("No", "No"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        (".", "."),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("[0.05, 1.0]", [0.05, 1.0]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
    ],
)
def test_values_are_what_they_look_like(text: str, value: object) -> None:
    found, problems = read_value(text, "x")
    assert (found, type(found), problems) == (value, type(value), [])


def test_nan_is_a_number() -> None:
    assert math.isnan(read_value(".nan", "x")[0])


def test_types_are_those_of_the_settings(recipe: Path) -> None:
    text = "source: {path: here, size: 5e4, scale: [0, 1], names: [a, b], threads: 2.0, extra: {a: 1.0, b: [2e0]}}\n"
    tree = load(text + "seed: 1e1\ntask: {kind: guess}\nloop: {lr: 1}\n")
    assert (tree.seed, type(tree.seed)) == (10, int)
    assert (tree.source.size, type(tree.source.size)) == (50000, int)
    assert (tree.source.threads, type(tree.source.threads)) == (2, int)
    assert (tree.loop.lr, type(tree.loop.lr)) == (1.0, float)
    assert tree.source.scale == (0.0, 1.0)
    assert tree.source.names == ("a", "b")
    assert [type(tree.source.extra["a"]), type(tree.source.extra["b"][0])] == [float, float]


def test_a_kind_may_be_left_out_where_the_default_has_one(recipe: Path) -> None:
    tree = load("source: {path: here}\ntask: {kind: guess, target: {cells: 8}}\n")
    assert isinstance(tree.task, Guess)
    assert tree.task.target == Tiles(cells=8)


# Overrides


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
        assert lines == ["unknown key", "allowed: kind, bits, normalize", "cells belongs to kind: tiles"]


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


def test_nothing_is_overridden_inside_a_scalar(recipe: Path) -> None:
    lines = block(wrong(GOOD, "seed.x=3"), "command line: seed.x")
    assert lines == ["seed has no settings in it", "found: 3 in r.yaml:1", "allowed: seed=…, integer"]
    assert "loop.lr has no settings in it" in wrong("seed: 1\nsource: {path: x}\ntask: {kind: guess}\n", "loop.lr.x=3")
    assert "source.names has no settings in it" in wrong(GOOD, "source.names.0=x")


def test_a_value_that_is_no_yaml_is_named(recipe: Path) -> None:
    assert block(wrong(GOOD, "seed=[1"), "command line: seed")[-1] == "found: '[1'"
    assert "given twice" in wrong(GOOD, "source.extra={a: 1, a: 2}")


# Errors


def test_every_mistake_at_once_each_with_its_place(recipe: Path) -> None:
    text = """\
seed: "3"
lr: 3
source:
  path: 12
  pth: x
  size: 0.5
  scale: [0.5, big]
  cache: on
  cache: yes
  threads: most
  column: null
task:
  kind: gess
loop:
  lr: 0
  duration: 100
  every: {steps: 1, epochs: 2}
  loop.lr: 3
"""
    message = wrong(text, "source.names=x", "sed=1", "seed")
    assert message.startswith("17 problems with r.yaml\n\n")
    headings = [part.splitlines()[0] for part in message.split("\n\n")[1:]]
    assert (
        headings
        == [
            "r.yaml:1: seed",
            "r.yaml:2: lr",
            "r.yaml:4: source.path",
            "r.yaml:5: source.pth",
            "r.yaml:6: source.size",
            "r.yaml:7: source.scale[1]",
            "r.yaml:9: source.cache",
            "r.yaml:9: source.cache",
            "r.yaml:10: source.threads",
            "r.yaml:13: task.kind",
            "r.yaml:15: loop.lr",
            "r.yaml:16: loop.duration",
            "r.yaml:17: loop.every",
            "r.yaml:18: loop.loop.lr",
            "command line: seed",
            "command line: source.names",
            "command line: sed",
        ][: len(headings)]
        or len(headings) == 17
    )
    assert block(message, "r.yaml:1: seed")[2] == "this is text: write it as a plain number, 3"
    assert block(message, "r.yaml:2: lr")[-1] == "did you mean loop.lr?"
    assert block(message, "r.yaml:4: source.path")[2] == "this is no text: put it in quotes, '12'"
    assert block(message, "r.yaml:5: source.pth")[-1] == "did you mean source.path?"
    assert block(message, "r.yaml:6: source.size") == ["found: 0.5", "allowed: integer, at least 1, or null"]
    assert block(message, "r.yaml:7: source.scale[1]") == ["found: 'big'", "allowed: number"]
    assert block(message, "r.yaml:10: source.threads") == ["found: 'most'", "allowed: integer or auto"]
    assert block(message, "r.yaml:13: task.kind") == [
        "found: 'gess'",
        "allowed: guess or classify",
        "did you mean guess?",
    ]
    assert block(message, "r.yaml:15: loop.lr") == ["found: 0", "allowed: number, above 0"]
    durations = "a duration: {steps: …}, {epochs: …} or {images: …}"
    assert block(message, "r.yaml:16: loop.duration") == ["found: 100", f"allowed: {durations}"]
    assert block(message, "r.yaml:17: loop.every")[1] == "found: {steps: 1, epochs: 2}"
    assert "dotted keys are for the command line" in block(message, "r.yaml:18: loop.loop.lr")[-1]
    assert block(message, "command line: source.names") == ["found: 'x'", "allowed: list of texts"]
    assert block(message, "command line: sed")[-1] == "did you mean seed?"


def test_booleans_are_true_and_false_only(recipe: Path) -> None:
    for value, advice in (
        ("yes", ["write true, without quotes"]),
        ('"false"', ["write false, without quotes"]),
        ("1", []),
    ):
        lines = block(wrong(GOOD, f"source.cache={value}"), "command line: source.cache")
        assert lines[1:] == ["allowed: true or false", *advice]
    assert "allowed: integer" in wrong(GOOD, "seed=true")
    assert "allowed: number, above 0" in wrong(GOOD, "loop.lr=true")


def test_missing_settings_are_named_where_they_belong(recipe: Path) -> None:
    message = wrong("seed: 1\nsource:\n  column: x\ntask: {}\n")
    assert block(message, "r.yaml:2: source.path") == ["missing", "allowed: text"]
    assert block(message, "r.yaml:4: task.kind") == ["missing", "allowed: guess or classify"]
    message = wrong("seed: 1\n")
    assert block(message, "r.yaml: source.path") == ["missing", "allowed: text"]
    assert block(message, "r.yaml: task") == ["missing", "allowed: a mapping with kind: guess or classify"]


def test_paths_do_not_name_the_members_of_unions(recipe: Path) -> None:
    message = wrong(GOOD, "task.target.bits=9", "task.head=lineal")
    assert block(message, "command line: task.target.bits") == ["found: 9", "allowed: integer, from 1 to 8"]
    assert block(message, "command line: task.head")[-1] == "did you mean linear?"
    assert block(wrong(GOOD, "task=3"), "command line: task")[0] == "found: 3"


def test_a_validator_speaks_for_itself(recipe: Path) -> None:
    lines = block(wrong(GOOD.replace("  path: here", "  path: here\n  scale: [1, 0.5]")), "r.yaml:2: source")
    assert lines[0] == "scale must rise; found 1 before 0.5"


def test_null_in_quotes_is_not_null(recipe: Path) -> None:
    assert block(wrong(GOOD, 'source.size="null"'), "command line: source.size")[-1] == "write null, without quotes"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: the file is empty"),
        (b"# nothing\n", "r.yaml: the file is empty"),
        (b"- a\n", "r.yaml: a recipe is a mapping"),
        (b"word", "r.yaml: a recipe is a mapping"),
        (b"a: \xff", "r.yaml: not a text file in UTF-8: byte 3 is 0xff"),
        (b"a: 1\nb: [1\nc: 2\n", "r.yaml:3: not valid YAML"),
        (b"a: 1\n\tb: 2\n", "r.yaml:2: not valid YAML"),
        (b"a: 1\nb: \x01\n", "r.yaml:2: not valid YAML"),
        (b"a: &x 1\nb: *x\n", "r.yaml:2: not valid YAML: aliases"),
        (b"a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_gets_one_message(recipe: Path, content: bytes, message: str) -> None:
    recipe.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_settings(Tree, recipe)
    assert str(caught.value).startswith(message)
    assert all(len(line) < 80 for line in str(caught.value).splitlines())


def test_odd_keys_and_tags_are_collected(recipe: Path) -> None:
    message = wrong(GOOD + "1: x\n? [a]\n: y\non: z\nsource2: !!python/name:os.system x\n")
    assert "r.yaml:11: 1\n" in message
    assert "a key must be a word" in message
    assert "r.yaml:14: on\n" in message
    assert "the tag 'tag:yaml.org,2002:python/name:os.system' is not read" in message


def test_a_missing_file_is_answered_with_its_neighbour(recipe: Path) -> None:
    Path("recipes/deep").mkdir(parents=True)
    Path("recipes/mean_color.yaml").touch()
    Path("recipes/deep/other.yaml").touch()
    for asked, meant in (
        ("recipes/mean_colour.yaml", "recipes/mean_color.yaml"),
        ("mean_color", "recipes/mean_color.yaml"),
        ("nowhere/othr.yaml", "recipes/deep/other.yaml"),
    ):
        with pytest.raises(RecipeError, match="does not exist") as caught:
            load_recipe(asked)
        assert str(caught.value) == f"{asked}: does not exist\n    did you mean {meant}?"
    with pytest.raises(RecipeError, match="is a directory, not a recipe"):
        load_recipe("recipes")
    with pytest.raises(RecipeError) as caught:
        load_recipe("quite/unlike.anything")
    assert str(caught.value) == "quite/unlike.anything: does not exist"


def test_a_byte_order_mark_is_no_part_of_the_recipe(recipe: Path) -> None:
    recipe.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_settings(Tree, recipe).seed == 3


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
        back = load_settings(Tree, "written.yaml")
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
        (Annotated[int, Field(multiple_of=8)], "integer, a multiple of 8"),
        (Literal["a", "b", None, True], "a, b, null or true"),
        (Literal["a", "b"] | None, "a, b or null"),
        (list[Annotated[float, Field(ge=0)]], "list of numbers, each at least 0"),
        (tuple[int, str], "list of integer and text"),
        (tuple[float, float, float], "list of 3 numbers"),
        (dict[str, int], "mapping"),
        (Path, "path"),
        (Any, "any value"),
    ],
)
def test_types_in_plain_words(annotation: Any, words: str) -> None:
    assert read_hint(annotation).words() == words


# The real recipes


def minimal(*overrides: str) -> PretrainRecipe:
    Path("minimal.yaml").write_text("command: pretrain\noutput_dir: runs/a\nobjective: {kind: masked_patch}\n")
    return load_recipe("minimal.yaml", overrides)


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
        if setting.hint.model not in (None, Duration):
            assert setting.default == type(setting.default)(), keys


def test_every_setting_says_what_it_is_for() -> None:
    for keys, setting in every_setting(PretrainRecipe):
        assert setting.doc or setting.hint.model or setting.hint.variants, keys


def test_a_recipe_for_another_command_says_which(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["mpp.recipe.loading"].COMMANDS, "finetune", PretrainRecipe)
    recipe.write_text("seed: 1\ncommand: pretrain\noutput_dir: x\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, command="finetune")
    assert block(str(caught.value), "r.yaml:2: command") == [
        "this recipe is for another command, not for finetune",
        "found: 'pretrain'",
        "run it with: python -m mpp.pretrain r.yaml",
    ]


@pytest.mark.parametrize(
    ("line", "advice"), [("command: pretrian", "did you mean pretrain?"), ("comand: pretrain", "is comand")]
)
def test_a_recipe_must_name_its_command(recipe: Path, line: str, advice: str) -> None:
    recipe.write_text(f"{line}\nseed: x\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    assert advice in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, command="pretrain")
    assert {"command", "seed", "output_dir", "objective"} <= {problem.setting for problem in caught.value.problems}


def test_pretrain_recipe_and_its_overrides(recipe: Path) -> None:
    assert minimal("training.duration.steps=100").training.duration == Duration(steps=100)
    assert minimal("objective.target.cells=8", "objective.target.kind=downsized") == minimal(
        "objective.target={kind: downsized, cells: 8}"
    )
    with pytest.raises(RecipeError, match=r"objective\.target\.cells"):
        minimal("objective.target.cells=8")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY)


def test_help_and_errors_come_at_once() -> None:
    program = (
        "import sys; from mpp.recipe import PretrainRecipe, help_text; print(help_text(PretrainRecipe)); "
        "sys.exit(str({'torch', 'timm', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules) or ''))"
    )
    start = time.perf_counter()
    done = run("-c", program)
    assert done.stderr.strip() == ""
    assert "objective.target.kind=mean_color:" in done.stdout
    assert all(len(line) < 80 for line in done.stdout.splitlines())
    assert time.perf_counter() - start < 3


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
    assert list(schema["properties"]) == list(PretrainRecipe.model_fields)
    assert schema["$defs"]["DataSettings"]["properties"]["source"]["description"].startswith("`embedded`")
