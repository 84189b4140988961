"""Settings classes read from their type hints: what a setting may be, in words, and what a dotted path leads to.

Overrides, error messages and the help all ask here.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

KIND = "kind"
"""The key that tells the members of a union apart."""

UNITS = ("steps", "epochs", "images")
"""The settings of a duration, of which exactly one is given."""

Keys = tuple[str | int, ...]
"""The path of a value in the tree: keys of mappings, and numbers of list items."""

_NOUNS = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "mapping"}
_LIMITS = {
    "gt": "above {}",
    "ge": "at least {}",
    "lt": "below {}",
    "le": "at most {}",
    "min_length": "at least {} long",
    "pattern": "matching {}",
}


@dataclass(frozen=True)
class Setting:
    """What a value may be: of one of these types, within limits by pydantic's names (`ge`, `pattern`, …), or null."""

    types: tuple[Any, ...]
    limits: Mapping[str, Any]
    nullable: bool
    default: Any = PydanticUndefined
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is PydanticUndefined

    @property
    def models(self) -> list[type[BaseModel]]:
        """The settings classes among the types."""
        return [each for each in self.types if isinstance(each, type) and issubclass(each, BaseModel)]

    @property
    def model(self) -> type[BaseModel] | None:
        """The settings class, where there is exactly one to choose from."""
        return self.models[0] if self.models and len(self.types) == 1 else None

    @property
    def variants(self) -> dict[str, type[BaseModel]]:
        """The settings classes of a union by their `kind`; empty for everything else."""
        models = self.models if len(self.models) > 1 else []
        return {kind: model for model in models for kind in settings_of(model)[KIND].choices}

    @property
    def choices(self) -> tuple[Any, ...]:
        """Every value that is allowed by name."""
        return tuple(choice for each in self.types if get_origin(each) is Literal for choice in get_args(each))

    @property
    def is_text(self) -> bool:
        """Whether any text at all is allowed, and nothing else but null."""
        return self.types == (str,)

    def admits(self, *wanted: Any) -> bool:
        """Whether one of the types is among `wanted`; `list[int]` is a `list`."""
        return any((get_origin(each) or each) in wanted for each in self.types)

    def narrowed(self, kind: Any) -> Setting:
        """The variant of this `kind`, where there are variants and it is one."""
        model = self.variants.get(kind) if isinstance(kind, str) else None
        return read_hint(model) if model else self

    def item(self, key: str | int) -> Setting | None:
        """What may be at `key` of a section, a mapping or a list of any of the types; None where nothing is known."""
        items = [item for each in self.types if (item := _item(each, key)) is not None]
        if len(items) < 2:
            return items[0] if items else None
        union = dict.fromkeys(each for item in items for each in item.types)
        return Setting(tuple(union), items[0].limits, any(item.nullable for item in items))

    def words(self) -> str:
        """What is allowed, in plain words."""
        if self.variants:
            parts = [f"a mapping with {KIND}: {listed(self.variants)}"]
        else:
            parts = [word for each in self.types for word in _words(each, self.limits)]
        long = any(", " in part for part in parts)
        if self.nullable:
            parts.append("null")
        return ", or ".join(parts) if long else listed(parts)


@functools.cache
def settings_of(model: type[BaseModel]) -> dict[str, Setting]:
    """The fields of a settings class, in its order."""
    return {name: read_hint(field) for name, field in model.model_fields.items()}


def read_hint(hint: Any) -> Setting:
    """A type hint, or a field of a settings class, with its unions flattened and its annotations collected."""
    field = hint if isinstance(hint, FieldInfo) else FieldInfo.from_annotation(hint)
    limits = {name: at for each in field.metadata for name in _LIMITS if (at := getattr(each, name, None)) is not None}
    is_union = get_origin(field.annotation) in (Union, UnionType)
    members = [read_hint(member) for member in get_args(field.annotation)] if is_union else []
    for member in members:
        limits |= member.limits
    nullable = field.annotation in (None, NoneType) or any(member.nullable for member in members)
    found = [each for member in members for each in member.types] if is_union else [field.annotation]
    types = tuple(each for each in found if each not in (None, NoneType))
    return Setting(types, limits, nullable, field.get_default(call_default_factory=True), field.description or "")


def resolve(model: type[BaseModel], keys: Keys, values: Any) -> Setting | None:
    """What may be at `keys` in a tree of `values`, whose kinds choose the variants; None if unknown."""
    setting: Setting | None = read_hint(model)
    for key in keys:
        known = values if isinstance(values, dict) else {}
        setting = setting.narrowed(known.get(KIND)).item(key)
        if setting is None:
            return None
        values = known.get(key)
    return setting


def keys_of(error: ErrorDetails, values: Any) -> Keys:
    """The keys of an error of pydantic's, whose location also names the members of unions: these `values` lack."""
    keys: list[str | int] = []
    for step in error["loc"]:
        try:
            values = values[step]
        except (LookupError, TypeError):
            continue
        keys.append(step)
    return (*keys, error["loc"][-1]) if error["type"] == "missing" else tuple(keys)


def every_setting(model: type[BaseModel], above: Keys = ()) -> Iterator[tuple[Keys, Setting]]:
    """All settings of the tree with their keys, sections before what is in them, every variant of every union."""
    for name, setting in settings_of(model).items():
        yield (*above, name), setting
        for inner in setting.models:
            yield from every_setting(inner, (*above, name))


def dotted(keys: Keys) -> str:
    """`("data", "scale", 0)` as `data.scale[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def listed(words: Iterable[str], last: str = "or") -> str:
    """`a, b or c`."""
    *head, tail = words
    return f"{', '.join(head)} {last} {tail}" if head else tail


def nearest(word: Any, words: Iterable[str]) -> str | None:
    """The one of `words` that `word` was probably meant to be."""
    plain = {candidate.lower().replace("-", "_"): candidate for candidate in words}
    close = difflib.get_close_matches(str(word).lower().replace("-", "_"), list(plain), n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def _item(annotation: Any, key: str | int) -> Setting | None:
    """What may be at `key` of a value of one type; the items of a list are all of the same type."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return settings_of(annotation).get(str(key))
    if origin is dict and not isinstance(key, int):
        return read_hint(arguments[1] if arguments else Any)
    if origin in (list, tuple) and isinstance(key, int) and arguments:
        return read_hint(arguments[0])
    return None


def _words(annotation: Any, limits: Mapping[str, Any]) -> Sequence[str]:
    """A type and its limits in words; one for each choice of a Literal."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Literal:
        return [str(choice) for choice in arguments]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        names = tuple(annotation.model_fields)
        durations = listed(f"{{{unit}: …}}" for unit in UNITS)
        return [f"a duration: {durations}" if names == UNITS else f"a mapping of {', '.join(names)}"]
    bounds = _bounds(limits)
    if origin not in (list, tuple):
        return [f"{_NOUNS.get(origin, 'any value')}{bounds}"]
    noun, comma, rest = read_hint(arguments[0] if arguments else Any).words().partition(", ")
    if noun in ("integer", "number", "text"):
        noun, comma = f"{noun}s", comma and ", each "
    length = f"{len(arguments)} " if origin is tuple and Ellipsis not in arguments else ""
    return [f"list of {length}{noun}{comma}{rest}{bounds}"]


def _bounds(limits: Mapping[str, Any]) -> str:
    left, words = dict(limits), []
    if left.get("min_length") == 1:
        del left["min_length"]
        words.append("not empty")
    if "ge" in left and "le" in left:
        words.append(f"from {left.pop('ge')} to {left.pop('le')}")
    words += [phrase.format(left[name]) for name, phrase in _LIMITS.items() if name in left]
    return f", {listed(words, 'and')}" if words else ""
