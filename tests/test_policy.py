"""The house's rules: which way imports point, what a reader may expect everywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import mpp
from mpp.__main__ import COMMANDS

PACKAGE = Path(mpp.__file__).parent
# Each floor may import from those below it, never from above, and from its own rooms only downward in this list.
FLOORS = [
    {"files", "memory", "redact", "run_folder", "settings", "type_hints", "randomness", "extras", "launch", "progress"},
    {"data"},
    {"encoder"},
    {"objective"},
    {"training"},
    {"evaluation", "hub.settings", "study.settings", "study.arms"},
    {"recipe"},
    {"cli", "commands", "hub", "study"},
    {
        "pretrain",
        "benchmark",
        "evaluate",
        "finetune",
        "gap",
        "push",
        "embed",
        "predict",
        "recipes",
        "report",
        "__main__",
    },
]
HEAVY = {"torch", "timm", "datasets", "accelerate", "matplotlib", "torchvision"}


def modules() -> dict[str, ast.Module]:
    found = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(found) > 30
    return found


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name == "mpp" or name.startswith("mpp.")}


def room(module: str) -> str:
    """Where a module lives: its room, or its own place on a floor, as the settings of a room high up have."""
    inner = module.split(".")[1:]
    own = ".".join(inner[:2])
    return own if any(own in rooms for rooms in FLOORS) else ".".join(inner[:1])


def floor(name: str) -> int | None:
    return next((level for level, rooms in enumerate(FLOORS) if name in rooms), None)


def test_every_module_lives_on_a_floor():
    assert {room(name) for name in modules()} - {""} == set().union(*FLOORS)


def test_imports_point_downward_and_settings_may_be_read_from_above():
    wrong = []
    for name, tree in modules().items():
        if name == "mpp":
            continue
        for target in imported(tree):
            here, there = floor(room(name)), floor(room(target))
            # `recipe` composes the rooms' settings from above; and a room never imports `recipe`.
            if here is not None and there is not None and there > here:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_modules_do_not_import_each_other_in_circles():
    trees = modules()
    for tree in trees.values():  # what only the type checker sees is no cycle
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = [ast.Pass()]
    edges = {name: {t for t in imported(tree) if t in trees and t not in (name, "mpp")} for name, tree in trees.items()}
    edges["mpp"] = set()  # its names are imported when they are used
    while edges:
        leaves = {name for name, targets in edges.items() if not targets & set(edges)}
        assert leaves, f"a circle among {sorted(edges)}"
        edges = {name: targets for name, targets in edges.items() if name not in leaves}


def test_reading_a_recipe_imports_nothing_heavy():
    commands = ", ".join(f"mpp.{name}" for name in ("__main__", *(name for name in COMMANDS)))
    code = f"import sys, mpp, {commands}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())


@pytest.mark.parametrize("name", mpp.__all__)
def test_every_public_name_is_there_and_explained(name: str):
    value = getattr(mpp, name)
    assert inspect.getdoc(value), name
    for method, function in vars(value).items() if inspect.isclass(value) else ():
        if not method.startswith("_") and inspect.isfunction(function):
            assert inspect.getdoc(function), f"{name}.{method}"


def test_importing_the_package_costs_nothing():
    code = "import sys, mpp; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"pydantic", "numpy"}) & set(run.stdout.split())
    assert importlib.import_module("mpp").__version__


def test_no_file_names_a_person_s_machine_or_leaves_work_for_later():
    root = PACKAGE.parent
    texts = [*PACKAGE.rglob("*.py"), *(root / "recipes").rglob("*.yaml"), root / "README.md", root / "pyproject.toml"]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text, path
        assert "TO" + "DO" not in text, path


def test_the_readme_s_tree_matches_the_folders():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    for path in PACKAGE.iterdir():
        if path.name.startswith("__"):
            continue
        assert f"{path.name}/" in readme if path.is_dir() else path.name in readme, f"{path.name} is not in the README"
