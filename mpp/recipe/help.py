"""Every setting of a recipe with its default, its type and its docstring: what `--help` prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from mpp.recipe.dump import plain
from mpp.recipe.errors import WIDTH, wrapped
from mpp.recipe.yaml import in_line
from mpp.settings import Duration
from mpp.type_hints import KIND, UNITS, Setting, listed, settings_of

_REQUIRED = "…"
_OPENING = f"""
Every setting, with its default, as key=value on the command line would set it; a recipe nests the keys. {_REQUIRED}
means that there is no default. A duration is in one unit, {listed(UNITS)}, which replaces the one in the recipe:
training.duration.epochs=3.
"""


def help_text(model: type[BaseModel]) -> str:
    """The settings of `model`, 80 columns wide, those of no section first."""
    settings = sorted(settings_of(model).items(), key=lambda item: _is_section(item[1]))
    lines = [*_paragraph(_OPENING, 0), ""]
    for name, setting in settings:
        lines += ["", *_section(name, setting, 0)] if _is_section(setting) else _setting(name, setting, 0)
    return "\n".join(lines)


def _is_section(setting: Setting) -> bool:
    return bool(setting.variants) or setting.model not in (None, Duration)


def _section(path: str, setting: Setting, depth: int) -> Iterator[str]:
    """A section: what it is for, then its settings, or those of each of its kinds."""
    if setting.variants:
        default = _REQUIRED if setting.required else getattr(setting.default, KIND, "null")
        yield from _heading(f"{path}.{KIND}={default}", listed(setting.variants), depth)
        yield from _paragraph(setting.doc, depth + 2)
    sections = {f"{path}.{KIND}={kind}:": model for kind, model in setting.variants.items()}
    for heading, model in (sections or {path: setting.model}).items():
        assert model is not None
        yield from _heading(heading, "", depth)
        own = "" if setting.variants else setting.doc
        yield from _paragraph(own or (inspect.getdoc(model) or "").partition("\n\n")[0], depth + 2)
        for name, below in settings_of(model).items():
            if _is_section(below):
                yield from _section(f"{path}.{name}", below, depth + 1)
            elif name != KIND and name not in getattr(model, "without_effect", ()):
                yield from _setting(f"{path}.{name}", below, depth + 1)


def _setting(path: str, setting: Setting, depth: int) -> Iterator[str]:
    default, words = setting.default, setting.words()
    if setting.model is Duration:
        words = "duration or null" if setting.nullable else "duration"
    if isinstance(default, Duration):
        path, default = f"{path}.{default.unit}", getattr(default, default.unit)
    value = _REQUIRED if setting.required else in_line(_rounded(plain(default)))
    yield from _heading(f"{path}={value}", words, depth)
    yield from _paragraph(setting.doc, depth + 2)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() and abs(value) < 1e6 else float(f"{value:.4g}")


def _heading(text: str, note: str, depth: int) -> list[str]:
    line = f"{'  ' * depth}{text}"
    whole = f"{line}  ({note})" if note else line
    return [whole] if len(whole) <= WIDTH else [line, *_paragraph(f"({note})", depth + 2)]


def _paragraph(text: str, depth: int) -> list[str]:
    indent = "  " * depth
    return wrapped(" ".join(text.split()), indent, indent).splitlines()
