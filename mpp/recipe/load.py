"""Recipe file and overrides in, checked settings out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from mpp.recipe.errors import Problem, RecipeError, shown
from mpp.recipe.overrides import apply_overrides, complete
from mpp.recipe.parse import Document, read_document
from mpp.recipe.shipped import recipe_path
from mpp.recipe.tree import COMMANDS
from mpp.recipe.validate import check
from mpp.settings import SettingError, Settings
from mpp.type_hints import listed, nearest

S = TypeVar("S", bound=Settings)


def load_recipe(path: str | Path, overrides: Iterable[str] = (), command: str | None = None) -> Any:
    """The recipe at `path` with `key=value` overrides on top, checked as its `command:` asks.

    `path` is a file, or the name of a recipe that ships with the package, e.g. `mean_color`.

    `command` is the command that wants to run it: a recipe for another one is refused. Whatever is wrong raises one
    `RecipeError` that lists everything.
    """
    return open_recipe(path, overrides, command)[1]


def open_recipe(path: str | Path, overrides: Iterable[str], command: str | None) -> tuple[Document, Any]:
    """As `load_recipe`, with the document that remembers where each setting was written."""
    document = read_document(recipe_path(path))
    return document, _load(document, _schema(document, command), overrides)


def report(error: SettingError, document: Document) -> RecipeError:
    """An error about settings, with the line of each and its value."""
    problems = [document.explain(path, complaint) for path, complaint in error.complaints.items()]
    return RecipeError(problems, document.name)


def load_settings(model: type[S], path: str | Path, overrides: Iterable[str] = ()) -> S:
    """Any settings class, read and checked as recipes are."""
    return _load(read_document(path), model, overrides)


def _load(document: Document, model: type[S], overrides: Iterable[str]) -> S:
    complete(model, document.values)
    apply_overrides(document, model, overrides)
    return check(document, model).at("")


def _schema(document: Document, wanted: str | None) -> type[Settings]:
    named = document.values.get("command")
    if isinstance(named, str) and named in COMMANDS:
        if wanted in (None, named):
            return COMMANDS[named]
        complaint = f"this recipe is for another command, not for {wanted}"
        advice = f"run it with: python -m mpp.{named} {document.name}"
        problem = Problem(document.location(("command",)), "command", complaint, shown(named), "", advice)
    elif wanted is not None:
        return COMMANDS[wanted]  # whose check names the wrong command along with everything else
    else:
        problem = _no_command(document)
    raise RecipeError([*document.problems, problem], document.name)


def _no_command(document: Document) -> Problem:
    location, allowed = document.location(("command",)), listed(COMMANDS)
    if "command" in document.values:
        named = document.values["command"]
        match = nearest(named, list(COMMANDS))
        return Problem(location, "command", "", shown(named), allowed, f"did you mean {match}?" if match else "")
    match = nearest("command", list(document.values))
    advice = f"is {match} in {document.location((match,))} meant to be it?" if match else ""
    return Problem(location, "command", "missing: it names the command that the recipe is for", "", allowed, advice)
