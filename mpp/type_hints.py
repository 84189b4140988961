"""What may stand where: the settings classes, read from their type hints.

Everything that asks what a dotted path leads to asks here: overrides, error messages and the help.
"""

from __future__ import annotations

import difflib
import functools
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

KIND = "kind"
"""The key that tells the members of a union apart."""

UNITS = ("steps", "epochs", "images")
"""The settings of a duration, of which exactly one is given."""

Keys = tuple[str | int, ...]
"""The path of a value in the tree: keys of mappings, and numbers of list items."""

_NOUNS = {int: "integer", float: "number", str: "text", Path: "path", bool: "true or false", dict: "mapping"}


@dataclass(frozen=True)
class Member:
    """One of the types that a value may have, and its limits by pydantic's names (`ge`, `lt`, `min_length`, …)."""

    type: Any
    limits: Mapping[str, Any]

    @property
    def origin(self) -> Any:
        """`list` for `list[int]`, and so on; else the type itself."""
        return get_origin(self.type) or self.type

    @property
    def model(self) -> type[BaseModel] | None:
        """The settings class, if it is one."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, BaseModel) else None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal."""
        return get_args(self.type) if self.origin is Literal else ()

    def item(self, key: str | int) -> Hint | None:
        """What may stand at `key`, in a section, a mapping or a list."""
        arguments = get_args(self.type)
        if self.model is not None:
            setting = settings_of(self.model).get(str(key))
            return setting.hint if setting else None
        if self.origin is dict:
            return read_hint(arguments[1] if arguments else Any)
        if self.origin in (list, tuple, set, frozenset) and isinstance(key, int) and arguments:
            fixed = self.origin is tuple and arguments[-1] is not Ellipsis
            return read_hint(arguments[min(key, len(arguments) - 1)] if fixed else arguments[0])
        return None

    def words(self) -> str:
        """The type and its limits, as one would say them."""
        if self.choices:
            return listed(_plain(choice) for choice in self.choices)
        if is_duration(self.model):
            return f"a duration: {listed(f'{{{unit}: …}}' for unit in UNITS)}"
        if self.model is not None:
            return f"a mapping of {', '.join(settings_of(self.model))}"
        if self.origin in (list, tuple, set, frozenset):
            return self._list_words()
        limits = listed(_limit_words(self.limits), "and") if self.limits else ""
        return f"{_NOUNS.get(self.origin, 'any value')}{limits and ', ' + limits}"

    def _list_words(self) -> str:
        arguments = get_args(self.type)
        fixed = self.origin is tuple and arguments[-1:] != (Ellipsis,)
        kinds = list(dict.fromkeys(read_hint(argument).words() for argument in arguments if argument is not Ellipsis))
        limits = f", {listed(_limit_words(self.limits), 'and')}" if self.limits else ""
        if len(kinds) != 1:
            return f"list of {listed(kinds, 'and')}{limits}" if kinds else f"list{limits}"
        noun, comma, rest = kinds[0].partition(", ")
        each = f"{noun}s{comma and ', each '}{rest}" if noun in ("integer", "number", "text", "path") else kinds[0]
        return f"list of {len(arguments)} {each}{limits}" if fixed else f"list of {each}{limits}"


@dataclass(frozen=True)
class Hint:
    """What a value may be: one of the members, or null."""

    members: tuple[Member, ...]
    nullable: bool

    @property
    def model(self) -> type[BaseModel] | None:
        """The settings class, where there is exactly one to choose from."""
        return self.members[0].model if len(self.members) == 1 else None

    @property
    def variants(self) -> dict[str, type[BaseModel]]:
        """The settings classes of a union by their `kind`; empty for everything else."""
        models = [member.model for member in self.members if member.model and KIND in member.model.model_fields]
        if len(models) < 2:
            return {}
        return {kind: model for model in models for kind in settings_of(model)[KIND].hint.choices}

    @property
    def choices(self) -> tuple[Any, ...]:
        """Every value that is allowed by name."""
        return tuple(choice for member in self.members for choice in member.choices)

    @property
    def is_text(self) -> bool:
        """Whether any text at all is meant, and nothing else but null."""
        return len(self.members) == 1 and self.members[0].type in (str, Path)

    @property
    def has_keys(self) -> bool:
        """Whether a value can have keys below it."""
        return any(member.model or member.origin in (dict, Any) for member in self.members)

    def admits(self, *wanted: type) -> bool:
        """Whether a member is one of the types `wanted`."""
        return any(member.origin in wanted for member in self.members)

    def narrowed(self, kind: Any) -> Hint:
        """The variant of this `kind`, where there are variants and it is one."""
        model = self.variants.get(kind) if isinstance(kind, str) else None
        return read_hint(model) if model else self

    def item(self, key: str | int) -> Hint | None:
        """What may stand at `key` below a value of this type; None where that is not known."""
        return self.members[0].item(key) if len(self.members) == 1 else None

    def phrase(self) -> str:
        """What is allowed, to stand behind 'must be' in Python: `an integer from 1 to 4`."""
        words = re.sub(r"\bnull\b", "None", self.words())
        words = re.sub(r"^(integer|number), (?=from|above|below)", r"\1 ", words)
        words = re.sub(r"^(integer|number), (?=at|a)", r"\1 of ", words)
        article = "an " if words.startswith("integer") else "a " if re.match(r"number|list|mapping|path", words) else ""
        return article + words

    def words(self) -> str:
        """What is allowed, in plain words."""
        if self.variants:
            parts = [f"a mapping with {KIND}: {listed(self.variants)}"]
        else:
            parts = [
                word
                for member in self.members
                for word in (map(_plain, member.choices) if member.choices else [member.words()])
            ]
        long = any(", " in part for part in parts)
        if self.nullable:
            parts.append("null")
        return ", or ".join(parts) if long else listed(parts)


@dataclass(frozen=True)
class Setting:
    """A field of a settings class."""

    hint: Hint
    default: Any
    doc: str

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is PydanticUndefined


@functools.cache
def settings_of(model: type[BaseModel]) -> dict[str, Setting]:
    """The fields of a settings class, in its order."""
    return {
        name: Setting(
            read_hint(field.annotation, _limits(field)),
            field.get_default(call_default_factory=True),
            field.description or "",
        )
        for name, field in model.model_fields.items()
    }


def read_hint(annotation: Any, limits: Mapping[str, Any] = types.MappingProxyType({})) -> Hint:
    """A type hint with its unions flattened and its annotations collected."""
    members: list[Member] = []
    nullable = False

    def collect(annotation: Any, limits: Mapping[str, Any]) -> None:
        nonlocal nullable
        if get_origin(annotation) is Annotated:
            inner, *extras = get_args(annotation)
            collect(inner, {**limits, **_limits(*extras)})
        elif get_origin(annotation) in (Union, types.UnionType):
            for member in get_args(annotation):
                collect(member, limits)
        elif annotation in (None, type(None)):
            nullable = True
        else:
            members.append(Member(annotation, limits))

    collect(annotation, limits)
    return Hint(tuple(members), nullable)


def resolve(model: type[BaseModel], keys: Keys, values: Any) -> Hint | None:
    """What may stand at `keys` in a tree of `values`, whose kinds say which variants are meant; None if unknown."""
    hint: Hint | None = read_hint(model)
    for key in keys:
        known = values if isinstance(values, dict) else {}
        hint = hint.narrowed(known.get(KIND)).item(key)
        if hint is None:
            return None
        values = known.get(key)
    return hint


def is_duration(model: type[BaseModel] | None) -> bool:
    """Whether a settings class is a duration, whose units count as one value."""
    return model is not None and tuple(model.model_fields) == UNITS


def without_variants(model: type[BaseModel], location: Sequence[int | str]) -> Keys:
    """The keys of a location of pydantic's, which also names the members of unions."""
    hint: Hint | None = read_hint(model)
    keys: list[int | str] = []
    for step in location:
        if hint is not None and step in hint.variants:
            hint = hint.narrowed(step)
        elif hint is None or len(hint.members) != 1:
            break
        else:
            keys.append(step)
            hint = hint.item(step)
    return tuple(keys)


def dotted(keys: Keys) -> str:
    """`("data", "scale", 0)` as `data.scale[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def listed(words: Iterable[str], last: str = "or") -> str:
    """`a, b or c`."""
    *head, tail = words
    return f"{', '.join(head)} {last} {tail}" if head else tail


def nearest(word: Any, words: Sequence[str]) -> str | None:
    """The one of `words` that `word` was probably meant to be."""
    plain = {candidate.lower().replace("-", "_"): candidate for candidate in words}
    close = difflib.get_close_matches(str(word).lower().replace("-", "_"), list(plain), n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def every_setting(model: type[BaseModel], above: Keys = ()) -> Iterator[tuple[Keys, Setting]]:
    """All settings of the tree with their keys, sections before what is in them, every variant of every union."""
    for name, setting in settings_of(model).items():
        keys = (*above, name)
        yield keys, setting
        for member in setting.hint.members:
            if member.model and not is_duration(member.model):
                yield from every_setting(member.model, keys)


def _limits(*metadata: Any) -> dict[str, Any]:
    """The limits in the metadata of a field, whatever class they come in."""
    names = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
    limits: dict[str, Any] = {}
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            limits |= _limits(*entry.metadata)
        else:
            limits |= {name: getattr(entry, name) for name in names if getattr(entry, name, None) is not None}
    return limits


def _limit_words(limits: Mapping[str, Any]) -> list[str]:
    left = dict(limits)
    words = []
    if left.get("min_length") == 1:
        del left["min_length"]
        words.append("not empty")
    if "ge" in left and "le" in left:
        words.append(f"from {_plain(left.pop('ge'))} to {_plain(left.pop('le'))}")
    if left.get("min_length") == left.get("max_length") and "min_length" in left:
        words.append(f"{left.pop('min_length')} long")
        left.pop("max_length")
    phrases = {
        "gt": "above {}",
        "ge": "at least {}",
        "lt": "below {}",
        "le": "at most {}",
        "multiple_of": "a multiple of {}",
        "min_length": "at least {} long",
        "max_length": "at most {} long",
        "pattern": "matching {}",
    }
    return words + [phrase.format(_plain(left[name])) for name, phrase in phrases.items() if name in left]


def _plain(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else f"{value}"
