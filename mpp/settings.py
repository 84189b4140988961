"""The base class of all settings, which know where in a recipe they are; errors about them; durations."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mpp.type_hints import UNITS, dotted, keys_of, nearest, resolve, settings_of

_SETTINGS = "\n\nSettings:"


class _SettingsType(type(BaseModel)):  # pyright: ignore[reportUntypedBaseClass, reportGeneralTypeIssues]
    """Makes settings in Python as pleasant as in a recipe: plain errors, and help without pydantic's own members."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise SettingError(_complaints(cls, values, error)) from None  # pyright: ignore[reportArgumentType]

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_") and not hasattr(Settings, name)]


class Settings(BaseModel, metaclass=_SettingsType):
    """Immutable, typed settings of one room; unknown keys are refused, docstrings become the help.

    Settings that were loaded from a recipe know their dotted path, and so do copies (`model_copy`) of them.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    _location: str = ""

    shorthand: ClassVar[str | None] = None
    """The setting that plain text sets where a recipe gives it for the whole section: `encoder=runs/mine`."""

    without_effect: ClassVar[tuple[str, ...]] = ()
    """Settings of a base class that decide nothing in this section; the help leaves them out."""

    def at(self, path: str) -> Self:
        """A copy of these settings that has this dotted path in a recipe; all sections in it follow."""
        copy = self.model_copy(update={name: _at(value, f"{path}.{name}".lstrip(".")) for name, value in self})
        copy._location = path
        return copy

    def __eq__(self, other: object) -> bool:
        """Settings are equal wherever in a recipe they are."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    @property
    def location(self) -> str:
        """The dotted path of this section in its recipe; empty for a whole recipe, and for settings of no recipe."""
        return self._location

    def error(self, **complaints: str) -> SettingError:
        """The error to raise: what is wrong with each of these settings, by its name in this section."""
        return SettingError({f"{self.location}.{name}".lstrip("."): message for name, message in complaints.items()})

    def check_paths(self) -> None:
        """Refuse paths that are not there, from the names of files alone; sections without paths have nothing to check.

        Raises:
            SettingError: with what was found.
        """

    @contextmanager
    def blamed(self, default: str, **elsewhere: Settings) -> Iterator[None]:
        """Report a ValueError of a function of plain arguments as a SettingError of the settings that they came from.

        `default` is named where the error names no argument; `elsewhere` are arguments that came from other sections.
        """
        try:
            yield
        except SettingError as error:
            complaints: dict[str, str] = {}
            for name, complaint in error.complaints.items():
                complaints |= elsewhere.get(name, self).error(**{name: complaint}).complaints
            raise SettingError(complaints) from error
        except ValueError as error:
            raise self.error(**{default: str(error)}) from error

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Describe every setting in the docstring, for `help()`."""
        if cls.__doc__ and cls.__pydantic_fields_complete__:
            lines = [inspect.cleandoc(cls.__doc__) + _SETTINGS]
            for name, setting in settings_of(cls).items():  # pyright: ignore[reportArgumentType]
                default = "" if setting.required else f"; {setting.default!r} by default"
                doc = f". {' '.join(setting.doc.split())}" if setting.doc else ""
                lines.append(f"    {name}: {setting.words()}{default}{doc}")
            cls.__doc__ = "\n".join(lines)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The JSON Schema by which editors check recipes; it allows a shorthand in place of its section."""
        whole = handler.resolve_ref_schema(reference := handler(schema))
        whole["description"] = whole.get("description", "").partition(_SETTINGS)[0]
        if cls.shorthand is not None:
            section = dict(whole)
            whole.clear()
            whole["anyOf"] = [section, {"type": "string", "description": f"Short for `{cls.shorthand}: …`."}]
        return reference


class SettingError(ValueError):
    """Settings whose values do not fit: what is wrong with each, by its dotted path."""

    def __init__(self, complaints: dict[str, str]) -> None:
        super().__init__(complaints)
        self.complaints = complaints

    def __str__(self) -> str:
        lines = []
        for path, message in self.complaints.items():
            rest = without_name(path, message)
            lines.append(f"{path} {rest}" if rest != message else f"{path}: {message}".removeprefix(": "))
        return "\n".join(lines)


def without_name(path: str, complaint: str) -> str:
    """A complaint without its first word, where that is the name of its setting."""
    return re.sub(rf"^(\w+\.)*{re.escape(path.rpartition('.')[2])} ", "", complaint)


def _complaints(model: type[Settings], values: dict[str, Any], error: ValidationError) -> dict[str, str]:
    """What pydantic found wrong with arguments in Python, in plain words."""
    complaints: dict[str, str] = {}
    for details in error.errors(include_url=False):
        keys, refused = keys_of(details, values), details.get("ctx", {}).get("error")
        setting = resolve(model, keys, values)
        if details["type"] == "extra_forbidden":
            close = nearest(keys[-1], model.model_fields)
            message = f"{keys[-1]} is no setting of {model.__name__}" + (f"; did you mean {close}?" if close else "")
        elif isinstance(refused, Exception):  # by a validator
            message = str(refused)
        else:
            found = "missing" if details["type"] == "missing" else f"found {details['input']!r}"
            message = f"{found}; allowed: {setting.words() if setting else details['msg']}"
        complaints.setdefault(dotted(keys), message)
    return complaints


def together(*checks: Callable[[], object]) -> None:
    """Make every check, even if others fail; raise one SettingError with the complaints of all."""
    complaints: dict[str, str] = {}
    for check in checks:
        try:
            check()
        except SettingError as error:
            complaints |= error.complaints
    if complaints:
        raise SettingError(complaints)


def _at(value: Any, path: str) -> Any:
    """The sections in a value, each at its dotted path."""
    if isinstance(value, Settings):
        return value.at(path)
    if isinstance(value, dict):
        return {key: _at(below, f"{path}.{key}") for key, below in value.items()}
    return value


class Duration(Settings):
    """A length or an interval, in exactly one of three units: `{steps: 100}`, `{epochs: 3}`, `{images: 5e4}`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    steps: int | None = Field(default=None, ge=0)
    """Optimiser steps."""

    epochs: float | None = Field(default=None, ge=0)
    """Passes over the training images; fractions are allowed."""

    images: int | None = Field(default=None, ge=0)
    """Training images seen, repeats counted."""

    @model_validator(mode="after")
    def _one_unit(self) -> Duration:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise ValueError(f"a duration needs exactly one of steps, epochs or images; found {found}")
        return self

    def in_steps(self, *, batch_size: int, rows: int) -> int:
        """The duration in optimiser steps, `ceil(images / batch_size)`, for a train set of `rows` images."""
        if self.steps is not None:
            return self.steps
        # Fractions: 0.07 of 100 images are 7, and not a little more.
        images = self.images if self.images is not None else Fraction(str(self.epochs)) * rows
        return math.ceil(Fraction(images) / batch_size)

    def scaled(self, factor: float) -> Duration:
        """The duration times a factor; what was not 0 does not become 0."""
        if self.epochs is not None:
            return Duration(epochs=self.epochs * factor)
        length = getattr(self, self.unit)
        return Duration(**{self.unit: max(round(length * factor), 1) if length else 0})

    @property
    def unit(self) -> str:
        """The unit that it is given in."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    def __str__(self) -> str:
        return f"{getattr(self, self.unit):g} {self.unit}"
