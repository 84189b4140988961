"""Settings → YAML that reads back as the same settings; the differences between two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mpp.files import write_text
from mpp.recipe.yaml import in_block
from mpp.settings import Duration
from mpp.type_hints import KIND, UNITS


def write_recipe(recipe: BaseModel, path: str | Path) -> None:
    """Write the resolved recipe; `load_recipe(path)` gives an equal one."""
    header = "# Every setting as it was resolved from recipe, command line and defaults. Written by mpp.\n"
    write_text(Path(path), header + recipe_text(recipe))


def recipe_text(recipe: BaseModel) -> str:
    """The resolved recipe as YAML, in the order of the classes, every `kind` first."""
    return in_block(plain(recipe))


def plain(value: Any) -> Any:
    """Settings as mappings, lists and scalars; a duration as its one unit."""
    if isinstance(value, Duration):
        return {value.unit: getattr(value, value.unit)}
    if isinstance(value, BaseModel):
        names = sorted(type(value).model_fields, key=lambda name: name != KIND)  # a kind explains what follows it
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(old: BaseModel, new: BaseModel) -> list[tuple[str, Any, Any]]:
    """The settings that differ: dotted path, old and new value, in the order of the classes.

    Durations and lists count as one value. Where a `kind` differs, the settings beside it are not compared. A setting
    that one of the two does not have is None there.
    """
    return list(_differences("", plain(old), plain(new)))


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    sections = isinstance(old, dict) and isinstance(new, dict) and not {*old, *new} <= {*UNITS}
    if not sections:
        if old != new:
            yield path, old, new
    elif old.get(KIND) != new.get(KIND):
        yield f"{path}.{KIND}".removeprefix("."), old.get(KIND), new.get(KIND)
    else:
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(f"{path}.{key}".removeprefix("."), old.get(key), new.get(key))
