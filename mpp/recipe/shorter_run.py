"""A run shorter than its recipe's: warm-up and decay shrink with it where they would not fit."""

from __future__ import annotations

from typing import Any

from mpp.recipe.errors import COMMAND_LINE, Document
from mpp.settings import Duration, Settings

LENGTH, PARTS = ("training", "duration"), ("warmup", "decay")


def fitted(recipe: Settings, document: Document, before: Any) -> Settings:
    """The recipe, with warm-up and decay times new length / old length if together they are longer than the run.

    Only where the recipe file gives all three, in one unit, and the command line only the length: what somebody has
    asked for is refused rather than changed. `before` is the length in the file.
    """
    sections: Any = recipe
    if not {"optimizer", "training"} <= {*type(recipe).model_fields} or not isinstance(before, dict):
        return recipe
    optimizer, length = sections.optimizer, sections.training.duration
    parts = {name: getattr(optimizer, name) for name in PARTS}
    by_hand = [("optimizer", name) for name in PARTS if _is_overridden(document, ("optimizer", name))]
    if parts["decay"] is None or by_hand or not _is_overridden(document, LENGTH):
        return recipe
    old, unit = before.get(length.unit), length.unit
    if not old or not getattr(length, unit) or any(part.unit != unit for part in parts.values() if _amount(part)):
        return recipe
    if sum(map(_amount, parts.values())) <= _amount(length):
        return recipe
    factor = _amount(length) / old
    shorter = {name: _rounded(part.scaled(factor)) for name, part in parts.items()}
    changes = ", ".join(f"{name} {parts[name]} → {shorter[name]}" for name in PARTS if _amount(parts[name]))
    document.notes.append(f"the run is shorter than the recipe's {old:g} {unit}, and so are these with it: {changes}")
    return recipe.model_copy(update={"optimizer": optimizer.model_copy(update=shorter)})


def _is_overridden(document: Document, keys: tuple[str, ...]) -> bool:
    """Whether the command line gives a setting, or one in it or around it."""
    return any(where == COMMAND_LINE and (known[: len(keys)] == keys or keys[: len(known)] == known)
               for known, where in document.locations.items())  # fmt: skip


def _amount(duration: Duration) -> float:
    return getattr(duration, duration.unit)


def _rounded(duration: Duration) -> Duration:
    """Without the last digits of a product of decimal fractions."""
    return Duration(epochs=float(f"{duration.epochs:.6g}")) if duration.epochs is not None else duration
