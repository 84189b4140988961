"""Values are what they look like; every mistake is told at once, with its place."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest

from mpp.objective.targets import MeanColor
from mpp.recipe import PretrainRecipe, RecipeError, load_recipe
from mpp.recipe.parse import read_value
from mpp.recipe.validate import SYNONYMS
from mpp.type_hints import dotted, every_setting
from tests.support.small_recipe import GOOD, Guess, Tiles, block, load, read, wrong

SHIPPED = Path(__file__).parents[2] / "recipes" / "mean_color.yaml"

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
    assert message.startswith("17 problems with r.yaml and the command line\n\n")
    headings = [part.splitlines()[0] for part in message.split("\n\n")[1:]]
    assert sorted(headings) == sorted(
        [
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
        ]
    )
    assert block(message, "r.yaml:1: seed")[1] == "this is text: write it as a plain number, 3"
    assert block(message, "r.yaml:2: lr")[1] == "did you mean loop.lr?"
    assert block(message, "r.yaml:4: source.path")[1] == "this is no text: put it in quotes, '12'"
    assert block(message, "r.yaml:5: source.pth")[1] == "did you mean source.path?"
    assert block(message, "r.yaml:6: source.size") == ["found: 0.5", "allowed: integer, at least 1, or null"]
    assert block(message, "r.yaml:7: source.scale[1]") == ["found: 'big'", "allowed: number"]
    assert block(message, "r.yaml:10: source.threads") == ["found: 'most'", "allowed: integer or auto"]
    assert block(message, "r.yaml:13: task.kind") == [
        "found: 'gess'",
        "did you mean guess?",
        "allowed: guess or classify",
    ]
    assert block(message, "r.yaml:15: loop.lr") == ["found: 0", "allowed: number, above 0"]
    durations = "a duration: {steps: …}, {epochs: …} or {images: …}"
    assert block(message, "r.yaml:16: loop.duration") == ["found: 100", f"allowed: {durations}"]
    assert block(message, "r.yaml:17: loop.every")[1] == "found: {steps: 1, epochs: 2}"
    assert "dotted keys are for the command line" in block(message, "r.yaml:18: loop.loop.lr")[1]
    assert block(message, "command line: source.names") == ["found: 'x'", "allowed: list of texts"]
    assert block(message, "command line: sed")[1] == "did you mean seed?"


def test_booleans_are_true_and_false_only(recipe: Path) -> None:
    for value, advice in (
        ("yes", ["write true, without quotes"]),
        ('"false"', ["write false, without quotes"]),
        ("1", []),
    ):
        lines = block(wrong(GOOD, f"source.cache={value}"), "command line: source.cache")
        assert lines[1:] == [*advice, "allowed: true or false"]
    assert "allowed: integer" in wrong(GOOD, "seed=true")
    assert "allowed: number, above 0" in wrong(GOOD, "loop.lr=true")


def test_missing_settings_are_named_where_they_belong(recipe: Path) -> None:
    message = wrong("seed: 1\nsource:\n  column: x\ntask: {}\n")
    assert block(message, "r.yaml:2: source.path") == ["missing", "allowed: text"]
    assert block(message, "r.yaml:4: task.kind") == ["missing", "allowed: guess or classify"]
    message = wrong("seed: 1\n")
    assert block(message, "r.yaml: source")[1].startswith("allowed: a mapping of path, column,")
    assert block(message, "r.yaml: task") == ["missing", "allowed: a mapping with kind: guess or classify"]


def test_paths_do_not_name_the_members_of_unions(recipe: Path) -> None:
    message = wrong(GOOD, "task.target.bits=9", "task.head=lineal")
    assert block(message, "command line: task.target.bits") == ["found: 9", "allowed: integer, from 1 to 8"]
    assert block(message, "command line: task.head")[1] == "did you mean linear?"
    assert block(wrong(GOOD, "task=3"), "command line: task")[0] == "found: 3"


def test_a_validator_speaks_for_itself(recipe: Path) -> None:
    lines = block(wrong(GOOD.replace("  path: here", "  path: here\n  scale: [1, 0.5]")), "r.yaml:2: source")
    assert lines[0] == "scale must rise; found 1 before 0.5"


def test_null_in_quotes_is_not_null(recipe: Path) -> None:
    assert block(wrong(GOOD, 'source.size="null"'), "command line: source.size")[1] == "write null, without quotes"


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
        read(recipe)
    assert str(caught.value).startswith(message)
    assert all(len(line) < 80 for line in str(caught.value).splitlines())


@pytest.mark.parametrize("nest", ["[" * 200 + "]" * 200, "{b: " * 200 + "1" + "}" * 200])
def test_a_recipe_that_is_nested_too_deeply_gets_one_message(recipe: Path, nest: str) -> None:
    recipe.write_text(f"a: {nest}\n")
    with pytest.raises(RecipeError, match=r"^r.yaml:1: not valid YAML: nested more than 32 deep"):
        load_recipe(recipe)
    recipe.write_text(GOOD)
    for override in (f"source.extra={nest}", "source.extra." + "a." * 5000 + "b=1"):
        with pytest.raises(RecipeError, match="nested more than 32 deep"):
            read(recipe, override)


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
        ("mean_colr", "mean_color"),
        ("cifar10/mean_colour", "cifar10/mean_color"),
        ("nowhere/othr.yaml", "recipes/deep/other.yaml"),
    ):
        with pytest.raises(RecipeError, match="does not exist") as caught:
            load_recipe(asked)
        assert str(caught.value) == f"{asked}: does not exist\n    did you mean {meant}?"
    for asked, meant in (("recipes/cifar10/gap.yaml", "gap cifar10/gap"), ("photos.yaml", "pretrain photos")):
        with pytest.raises(RecipeError, match=f"did you mean the shipped recipe .*\\? mpp {meant}$"):
            load_recipe(asked)
    with pytest.raises(RecipeError, match="is a directory, not a recipe"):
        load_recipe("recipes")
    with pytest.raises(RecipeError) as caught:
        load_recipe("quite/unlike.anything")
    assert str(caught.value) == "quite/unlike.anything: does not exist"


def test_a_byte_order_mark_is_no_part_of_the_recipe(recipe: Path) -> None:
    recipe.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read(recipe).seed == 3


def test_a_recipe_for_another_command_says_which(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["mpp.recipe.load"].COMMANDS, "finetune", PretrainRecipe)
    recipe.write_text("seed: 1\ncommand: pretrain\noutput_dir: x\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, command="finetune")
    assert block(str(caught.value), "r.yaml:2: command") == [
        "this recipe is for another command, not for finetune",
        "found: 'pretrain'",
        "run it with: mpp pretrain r.yaml",
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


def test_what_settings_say_together_is_told_beside_other_mistakes_of_their_section():
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            SHIPPED,
            ["data.crop_scale=[1,0.5]", "data.sorce=x", "training.batch_size=100", "training.micro_batch_size=30",
             "training.precision=fp16"],
        )  # fmt: skip
    said = str(caught.value)
    for words in ("data.sorce", "crop_scale", "training.precision", "100", "30"):
        assert words in said, said


@pytest.mark.parametrize(
    ("arm", "path", "lines"),
    [
        (
            "{objective: {kind: masked_ptch}}",
            "objective.kind",
            ["found: 'masked_ptch'", "did you mean masked_patch?", "allowed: masked_patch or supervised"],
        ),
        (
            "{objective: {kind: masked_patch, target: {kind: downsized, bits: 9}}}",
            "objective.target.bits",
            ["found: 9", "allowed: integer, from 1 to 4"],
        ),
        (
            "{titel: x}",
            "titel",
            [
                "unknown key",
                "did you mean study.arms.mine.title?",
                "allowed: title, start, objective, optimizer, budget",
            ],
        ),
    ],
)
def test_a_mistake_in_an_arm_of_the_user_s_is_named_by_its_own_path(arm: str, path: str, lines: list[str]):
    with pytest.raises(RecipeError) as caught:
        load_recipe(SHIPPED.with_name("gap.yaml"), [f"study.arms={{mine: {arm}}}"])
    assert block(str(caught.value), f"command line: study.arms.mine.{path}") == lines


def test_an_arm_may_leave_out_what_a_default_says_and_write_integers_as_they_are_meant():
    arm = "{objective: {kind: masked_patch, target: {bits: 2e0}}}"
    recipe = load_recipe(SHIPPED.with_name("gap.yaml"), [f"study.arms={{mine: {arm}}}", "study.primary=[]"])
    assert recipe.study.arm("mine").objective.target == MeanColor(bits=2)


def test_a_default_that_stands_in_for_a_mistake_is_not_blamed():
    with pytest.raises(RecipeError) as caught:
        load_recipe(SHIPPED, ["training.batch_size=many", "training.micro_batch_size=7"])
    assert str(caught.value).count("found: ") == 1, caught.value


def test_all_that_does_not_go_together_in_a_study_is_listed_at_once():
    overrides = ["pretraining.checkpoint.resume=false", "evaluation.labels.seed=3", "downstream.image_size=48"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(SHIPPED.with_name("gap.yaml"), overrides)
    assert {problem.setting for problem in caught.value.problems} == {each.split("=")[0] for each in overrides}


def test_mistakes_of_the_command_line_are_not_blamed_on_the_shipped_file() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("photos", ["sed=1", "outputdir=x"])
    assert str(caught.value).startswith("2 problems with the command line\n\ncommand line: ")
    with pytest.raises(RecipeError) as caught:
        load_recipe("photos", ["seed=1"], command="embed")
    message = str(caught.value)
    assert message.startswith("recipe photos:")
    assert message.endswith("run it with: mpp pretrain photos")


@pytest.mark.parametrize(
    ("recipe_name", "override", "meant"),
    [
        ("photos", "optimizer.learning_rate=1e-3", "optimizer.lr"),
        ("photos", "batch=8", "training.batch_size"),
        ("photos", "epochs=8", "training.duration.epochs"),
        ("finetune", "lr=1e-3", "optimizer.lr"),
        ("gap", "finetuning.learning_rate=1e-3", "finetuning.optimizer.lr"),
        ("photos", "optimizer.learning_rat=1e-3", "optimizer.lr"),
        ("photos", "bath_size=8", "training.batch_size"),
    ],
)
def test_other_names_of_the_field_lead_to_the_setting(recipe_name: str, override: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=rf"unknown key\n    did you mean {re.escape(meant)}\?\n    allowed: "):
        load_recipe(recipe_name, [override])


def test_every_synonym_leads_to_a_setting_of_pretrain() -> None:
    known = {dotted(keys) for keys, _ in every_setting(PretrainRecipe)}
    assert set(SYNONYMS.values()) <= known
