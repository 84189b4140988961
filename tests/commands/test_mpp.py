"""The script `mpp`: its commands, and the recipes that ship with the package."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

import mpp
from mpp.__main__ import COMMANDS, main
from mpp.extras import DISTRIBUTION, require
from mpp.recipe.shipped import shipped_recipes, title
from tests.support.runs import RECIPES


def test_the_script_is_installed_under_the_distribution_s_own_name():
    (script,) = (e for e in entry_points(group="console_scripts") if e.name == "mpp" and e.value == "mpp.__main__:main")
    assert script.dist is not None
    assert script.dist.name == DISTRIBUTION
    assert script.dist.version == mpp.__version__


def test_without_a_command_it_lists_them_in_80_columns(capsys):
    assert main([]) == 2
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    assert all(f"\n  {name} " in without for name in COMMANDS)
    assert max(map(len, without.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys):
    try:
        code = main([name, "--help"])
    except SystemExit as leaving:
        code = leaving.code
    assert code in (0, None)
    assert f"mpp {name}" in capsys.readouterr().out


def test_version_and_a_slip_of_the_pen(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mpp {mpp.__version__} ({DISTRIBUTION})\n"
    assert main(["pretrian"]) == 2
    assert "did you mean pretrain?" in capsys.readouterr().err


def test_recipes_are_listed_a_line_each_and_printed_by_name(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
    assert sorted(line.split()[0] for line in lines) == files
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("…")], "the first line of a recipe is its title: shorten it"
    assert len({title(path) for path in shipped_recipes().values()}) == len(files)
    assert main(["recipes", "cifar10/mean_color"]) == 0
    assert capsys.readouterr().out == (RECIPES / "cifar10" / "mean_color.yaml").read_text()
    assert main(["recipes", "nosuch"]) == 2
    assert "mean_color" in capsys.readouterr().err


def test_a_shipped_recipe_is_loaded_by_its_name_unless_there_is_such_a_file(tmp_path, monkeypatch):
    assert mpp.load_recipe("mean_color") == mpp.load_recipe(RECIPES / "mean_color.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mean_color").write_text("command: pretrain\noutput_dir: mine\nobjective: {kind: masked_patch}\n")
    assert mpp.load_recipe("mean_color").output_dir == "mine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["mean_color", "--precesses", "2"], "unknown option --precesses"),
        (["mean_color", "--data.source", "photos"], "settings have no dashes; write data.source=photos"),
        (["mean_color", "--data.source=photos"], "settings have no dashes; write data.source=photos"),
        (["mean_color", "--processes", "two"], "--processes"),
        (["mean_color", "--processes", "0"], "1 or more"),
        (["--quiet"], "no recipe"),
    ],
)
def test_wrong_options_are_reported(given: list[str], said: str, capsys):
    assert main(["pretrain", *given]) == 2
    assert said in capsys.readouterr().err


def test_what_is_missing_is_named_with_the_line_that_installs_it():
    require("nothing", "torch")
    with pytest.raises(RuntimeError, match="the page needs nosuchmodule"):
        require("the page", "nosuchmodule")


def test_processes_are_offered_only_by_commands_that_train(capsys):
    for name in ("pretrain", "finetune", "evaluate", "embed", "predict", "gap"):
        assert main([name, "--help"]) == 0
        assert ("--processes" in capsys.readouterr().out) == (name in ("pretrain", "finetune"))


def test_help_of_embed_has_no_settings_of_training_crops(capsys):
    assert main(["embed", "--help"]) == 0
    said = capsys.readouterr().out
    assert "data.crop_pct" in said
    assert not [name for name in ("crop_scale", "crop_ratio", "flip", "cache") if f"data.{name}" in said]


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("pretrain", ["mean_color"]),
        ("finetune", ["finetune"]),
        ("evaluate", ["few_shot"]),
        ("embed", ["encoder=x"]),
        ("predict", ["encoder=x"]),
        ("gap", ["gap"]),
    ],
)
def test_a_folder_of_another_command_is_refused_and_stays_as_it_is(command: str, given: list[str], tmp_path, capsys):
    other = "embed" if command != "embed" else "pretrain"
    (tmp_path / "recipe.yaml").write_text(f"command: {other}\n")
    (tmp_path / "features.npy").write_bytes(b"")
    assert main([command, *given, f"output_dir={tmp_path}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"holds the output of mpp {other} (features.npy, recipe.yaml): choose another output_dir" in said
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "features.npy"}
