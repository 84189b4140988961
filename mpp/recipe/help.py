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

_OPENING = """
Every setting, with its default, as key=value on the command line would set it; a recipe nests the keys. {required}
stands where there is no default. A duration is in one unit, {units}, which replaces the one in the recipe:
training.duration.epochs=3.
"""
_REQUIRED = "…"


def help_text(model: type[BaseModel]) -> str:
    """The settings of `model`, room by room, 80 columns wide."""
    opening = " ".join(_OPENING.split()).format(required=_REQUIRED, units=listed(UNITS))
    own = {name: setting for name, setting in settings_of(model).items() if not _is_section(setting)}
    rooms = {name: setting for name, setting in settings_of(model).items() if _is_section(setting)}
    lines = [*_paragraph(opening, 0), ""]
    for name, setting in own.items():
        lines += _setting(name, setting, 0)
    for name, setting in rooms.items():
        lines += ["", *_section(name, setting, 0)]
    return "\n".join(lines)


def _is_section(setting: Setting) -> bool:
    return bool(setting.variants) or setting.model not in (None, Duration)


def _section(path: str, setting: Setting, depth: int) -> Iterator[str]:
    """A room, or a part of one: what it is for, then its settings, or those of each of its kinds."""
    if setting.variants:
        default = _REQUIRED if setting.required else getattr(setting.default, KIND, "null")
        yield from _heading(f"{path}.{KIND}={default}", listed(setting.variants), depth)
        yield from _paragraph(setting.doc, depth + 2)
    for kind, model in setting.variants.items():
        yield from _heading(f"{path}.{KIND}={kind}:", "", depth)
        yield from _paragraph(_doc(model), depth + 2)
        yield from _settings(path, model, depth + 1)
    if setting.model is not None:
        yield from _heading(path, "", depth)
        yield from _paragraph(setting.doc or _doc(setting.model), depth + 2)
        yield from _settings(path, setting.model, depth + 1)


def _settings(path: str, model: type[BaseModel], depth: int) -> Iterator[str]:
    for name, setting in settings_of(model).items():
        if _is_section(setting):
            yield from _section(f"{path}.{name}", setting, depth)
        elif name != KIND:
            yield from _setting(f"{path}.{name}", setting, depth)


def _setting(path: str, setting: Setting, depth: int) -> Iterator[str]:
    default = setting.default
    words = setting.words()
    if setting.model is Duration:
        words = "duration or null" if setting.nullable else "duration"
    if isinstance(default, Duration):
        [(unit, length)] = plain(default).items()
        path, value = f"{path}.{unit}", _brief(length)
    else:
        value = _REQUIRED if setting.required else _brief(plain(default))
    yield from _heading(f"{path}={value}", words, depth)
    yield from _paragraph(setting.doc, depth + 2)


def _brief(value: Any) -> str:
    rounded = [_rounded(item) for item in value] if isinstance(value, list) else _rounded(value)
    return in_line(rounded)


def _rounded(value: Any) -> Any:
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


def _doc(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").partition("\n\n")[0]
