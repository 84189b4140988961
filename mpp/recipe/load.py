"""Recipe file and overrides in, checked settings out."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mpp.recipe.errors import Document, RecipeError, shown
from mpp.recipe.overrides import apply_overrides
from mpp.recipe.parse import read_document
from mpp.recipe.shipped import recipe_path
from mpp.recipe.shorter_run import LENGTH, fitted
from mpp.recipe.tree import COMMANDS
from mpp.recipe.validate import check
from mpp.settings import Settings
from mpp.type_hints import listed, nearest


def load_recipe(path: str | Path, overrides: Iterable[str] = (), command: str | None = None) -> Any:
    """The recipe at `path` with `key=value` overrides on top, checked as its `command:` asks.

    `path` is a file, or the name of a recipe that ships with the package, e.g. `mean_color`.

    `command` is the command that wants to run it: a recipe for another one is refused. Whatever is wrong raises one
    `RecipeError` that lists everything.
    """
    return open_recipe(path, overrides, command)[1]


def open_recipe(path: str | Path, overrides: Iterable[str], command: str | None) -> tuple[Document, Any]:
    """As `load_recipe`, with the document that remembers where each setting was written."""
    file = recipe_path(path)
    document = read_document(file, "" if file == Path(path) else f"recipe {path}")
    model = _model(document, command, str(path))
    length = copy.deepcopy(document.value(LENGTH))
    apply_overrides(document, model, overrides)
    return document, fitted(check(document, model), document, length)


def _model(document: Document, wanted: str | None, recipe: str) -> type[Settings]:
    """The settings class of the recipe's command, which has to be the one that is wanted."""
    keys, named = ("command",), document.values.get("command")
    known = isinstance(named, str) and named in COMMANDS
    if known and wanted in (None, named):
        return COMMANDS[named]
    if wanted is not None and not known:
        return COMMANDS[wanted]  # whose check names the wrong command along with everything else
    if known:
        complaint = f"this recipe is for another command, not for {wanted}"
        advice = f"run it with: mpp {named} {recipe}"
        problem = document.problem(keys, complaint, found=shown(named), advice=advice)
    elif keys[0] in document.values:
        advice = f"did you mean {match}?" if (match := nearest(named, COMMANDS)) else ""
        problem = document.problem(keys, found=shown(named), allowed=listed(COMMANDS), advice=advice)
    else:
        match = nearest(keys[0], document.values)
        advice = f"is {match} in {document.location((match,))} meant to be it?" if match else ""
        complaint = "missing: it names the command that the recipe is for"
        problem = document.problem(keys, complaint, allowed=listed(COMMANDS), advice=advice)
    raise RecipeError([*document.problems, problem], document.name)
