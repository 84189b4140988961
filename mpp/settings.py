"""The base class of every settings class, and the one way to state how long something lasts."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Settings(BaseModel):
    """Immutable, typed settings of one room; unknown keys are refused, docstrings become the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    shorthand: ClassVar[str | None] = None
    """The setting that is meant where a recipe gives plain text for the whole section: `encoder=runs/mine`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The JSON Schema that editors check recipes by, in which a shorthand may stand for its section."""
        whole = handler.resolve_ref_schema(reference := handler(schema))
        if cls.shorthand is not None:
            section = dict(whole)
            whole.clear()
            whole["anyOf"] = [section, {"type": "string", "description": f"Short for `{cls.shorthand}: …`."}]
        return reference


class SettingError(ValueError):
    """Values that are well-formed, and refused by what uses them: which settings they are, and why."""

    def __init__(self, complaints: dict[str, str]) -> None:
        """`complaints` says what is wrong with each setting, by its name in the room that refuses it, or dotted."""
        super().__init__(complaints)
        self.complaints = complaints

    def __str__(self) -> str:
        return "\n".join(self.complaints.values())


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
        given = [unit for unit in ("steps", "epochs", "images") if getattr(self, unit) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "nothing"
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
        whole = {unit: getattr(self, unit) for unit in ("steps", "images") if getattr(self, unit) is not None}
        return Duration(**{unit: max(round(count * factor), 1) if count else 0 for unit, count in whole.items()})

    @property
    def unit(self) -> str:
        """The unit that it is given in."""
        return next(unit for unit in ("steps", "epochs", "images") if getattr(self, unit) is not None)

    def __str__(self) -> str:
        return next(f"{getattr(self, u):g} {u}" for u in ("steps", "epochs", "images") if getattr(self, u) is not None)
