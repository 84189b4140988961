"""List the recipes that ship with the package, or print one of them: `mpp recipes mean_color > mine.yaml`.

A command takes a shipped recipe by its name: `mpp pretrain mean_color`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap

from mpp.cli import guarded
from mpp.recipe.shipped import shipped_recipes, title


def main(arguments: list[str] | None = None) -> int:
    """`mpp recipes [NAME]`."""
    parser = argparse.ArgumentParser(prog="mpp recipes", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe; without it, list all")
    name = parser.parse_args(arguments).name
    return guarded(lambda: _print(name) if name else _list())


def _list() -> int:
    recipes = shipped_recipes()
    width = max(map(len, recipes)) + 2
    for name, path in recipes.items():
        print(f"{name:{width}}{textwrap.shorten(title(path), 80 - width, placeholder=' …')}")
    return 0


def _print(name: str) -> int:
    recipes = shipped_recipes()
    if name not in recipes:
        raise ValueError(f"no recipe {name} ships with the package; there are {', '.join(recipes)}")
    print(recipes[name].read_text(encoding="utf-8"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
