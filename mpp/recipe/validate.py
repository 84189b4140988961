"""From plain values to checked settings, and from pydantic's errors to words about the recipe."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mpp.recipe.errors import COMMAND_LINE, Problem, RecipeError, shown
from mpp.recipe.parse import Document
from mpp.settings import OBJECTIONS, SettingError, Settings
from mpp.type_hints import (
    KIND,
    Hint,
    Keys,
    dotted,
    every_setting,
    listed,
    nearest,
    read_hint,
    resolve,
    settings_of,
    without_variants,
)

S = TypeVar("S", bound=Settings)


def check(document: Document, model: type[S]) -> S:
    """The settings in `document`; a `RecipeError` with everything that is wrong in it otherwise."""
    tree = _for_json(document.values, read_hint(model))
    settings, errors = _validated(tree, model)
    explained: dict[Keys, Problem] = {}
    for details in errors:
        keys = without_variants(model, details["loc"])
        refused = details.get("ctx", {}).get("error")
        if isinstance(refused, SettingError):
            explained |= {
                (*keys, path): document.explain(dotted((*keys, path)), message)
                for path, message in refused.complaints.items()
            }
        else:
            explained.setdefault(keys, _explain(keys, details, model, document))  # each member of a union complains
    # What several settings say together is checked where each is valid by itself: once more, without the others.
    wrong = [without_variants(model, details["loc"]) for details in errors if details["type"] not in OBJECTIONS]
    pruned = {str(keys[-1]) for keys in wrong if keys and _prune(tree, keys)}
    for details in _validated(tree, model)[1] if pruned else ():
        keys = without_variants(model, details["loc"])
        if details["type"] in OBJECTIONS and keys not in explained:
            problem = _explain(keys, details, model, document)
            if not pruned & set(re.findall(r"\w+", problem.complaint)):  # what was left out has its default there
                explained[keys] = problem
    problems = [*document.problems, *explained.values()]
    if problems or settings is None:
        raise RecipeError(problems, document.name)
    return settings


def _validated(tree: Any, model: type[S]) -> tuple[S | None, list[ErrorDetails]]:
    try:
        return model.model_validate_json(json.dumps(tree), strict=True), []
    except ValidationError as error:
        return None, error.errors(include_url=False, include_input=False)


def _prune(tree: Any, keys: Keys) -> bool:
    """Take what stands at `keys` out of a tree; whether there was something."""
    for key in keys[:-1]:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return isinstance(tree, dict) and bool(keys) and tree.pop(keys[-1], tree) is not tree


def _for_json(value: Any, hint: Hint | None) -> Any:
    """`value` with integers for integral floats where integers are meant.

    Pydantic's strict mode for JSON has the manners a recipe needs (no text for numbers, no numbers for booleans, lists
    for tuples, integers for floats), but for one: it refuses 5e4 as an integer.
    """
    if isinstance(value, dict):
        inner = hint.narrowed(value.get(KIND)) if hint else None
        return {key: _for_json(below, inner.item(key) if inner else None) for key, below in value.items()}
    if isinstance(value, list):
        return [_for_json(item, hint.item(number) if hint else None) for number, item in enumerate(value)]
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and hint and hint.admits(int) and not hint.admits(float) else value


def _explain(keys: Keys, details: ErrorDetails, model: type[BaseModel], document: Document) -> Problem:
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(keys, model, document)
        case "missing":
            return _missing(keys, model, document)
        case "union_tag_not_found" if isinstance(document.value(keys), dict):
            return _missing((*keys, KIND), model, document)
        case "union_tag_invalid":
            return _mismatch((*keys, KIND), model, document)
        case kind if kind in OBJECTIONS:
            return _objection(keys, details, document)
        case _:
            return _mismatch(keys, model, document, details)


def _allowed_at(keys: Keys, model: type[BaseModel], document: Document) -> Hint | None:
    """What may stand at `keys`; for the `kind` of a union, any of its kinds."""
    if keys[-1:] == (KIND,):
        union = resolve(model, keys[:-1], document.values)
        if union is not None and union.variants:
            choices = [settings_of(variant)[KIND].hint.members for variant in dict.fromkeys(union.variants.values())]
            return Hint(tuple(member for members in choices for member in members), nullable=False)
    return resolve(model, keys, document.values)


def _missing(keys: Keys, model: type[BaseModel], document: Document) -> Problem:
    hint = _allowed_at(keys, model, document)
    return Problem(document.location(keys), dotted(keys), "missing", allowed=hint.words() if hint else "")


def _unknown_key(keys: Keys, model: type[BaseModel], document: Document) -> Problem:
    key, above = keys[-1], keys[:-1]
    union = resolve(model, above, document.values)
    section = union.narrowed((document.value(above) or {}).get(KIND)).model if union else None
    siblings = list(settings_of(section)) if section else []
    kinds = [kind for kind, variant in (union.variants if union else {}).items() if key in variant.model_fields]
    elsewhere = {dotted(known) for known, _ in every_setting(model) if known[-1] == key}
    if kinds:
        advice = f"{key} belongs to {KIND}: {listed(kinds)}"
    elif "." in str(key):
        advice = "dotted keys are for the command line; in a file, nest them"
    elif len(elsewhere) == 1:
        advice = f"did you mean {elsewhere.pop()}?"
    else:
        match = nearest(key, siblings)
        advice = f"did you mean {dotted((*above, match))}?" if match else ""
    return Problem(document.location(keys), dotted(keys), "unknown key", "", ", ".join(siblings), advice)


def _objection(keys: Keys, details: ErrorDetails, document: Document) -> Problem:
    """What a validator of a settings class says about several settings at once."""
    overridden = any(
        known[: len(keys)] == keys and location == COMMAND_LINE for known, location in document.locations.items()
    )  # then it is the command line that does not go with the file
    found = shown(document.value(keys))
    return Problem(
        COMMAND_LINE if overridden else document.location(keys),
        dotted(keys),
        str(details.get("ctx", {}).get("error", details["msg"])),
        "" if found.endswith("…") or not keys else found,
    )


def _mismatch(keys: Keys, model: type[BaseModel], document: Document, details: ErrorDetails | None = None) -> Problem:
    hint, value = _allowed_at(keys, model, document), document.value(keys)
    allowed = hint.words() if hint else ""
    covered = ("_type", "_parsing", "_than", "_than_equal", "_error", "_short", "_long", "_of", "_float")
    if details and not (allowed and details["type"].endswith(covered)):
        allowed = f"{allowed}; {details['msg']}" if allowed else details["msg"]  # a constraint that words() cannot put
    advice = _advice(value, hint) if hint else ""
    return Problem(document.location(keys), dotted(keys), "", shown(value), allowed, advice)


def _advice(value: Any, hint: Hint) -> str:
    """How the value was probably meant."""
    if isinstance(value, str):
        word = value.strip().lower()
        if match := nearest(value, [choice for choice in hint.choices if isinstance(choice, str)]):
            return f"did you mean {match}?"
        if hint.admits(bool) and word in ("yes", "on", "true", "no", "off", "false"):
            return f"write {'true' if word in ('yes', 'on', 'true') else 'false'}, without quotes"
        if hint.nullable and word in ("null", "none", "~", ""):
            return "write null, without quotes"
        if hint.admits(int, float) and (number := _number(word)) is not None:
            return f"this is text: write it as a plain number, {shown(number)}"
    elif hint.is_text and isinstance(value, int | float):
        return f"this is no text: put it in quotes, '{shown(value)}'"
    return ""


def _number(word: str) -> int | float | None:
    try:
        value = float(word.replace("_", "").replace(",", ""))
    except ValueError:
        return None
    return int(value) if value.is_integer() else value
