"""From plain values to checked settings, and from pydantic's errors to words about the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mpp.recipe.errors import Document, Problem, RecipeError, shown
from mpp.settings import Settings
from mpp.type_hints import KIND, Keys, Setting, dotted, every_setting, keys_of, listed, nearest, resolve

S = TypeVar("S", bound=Settings)
SYNONYMS = {
    "batch": "training.batch_size",
    "dataset": "data.source",
    "epochs": "training.duration.epochs",
    "img_size": "data.image_size",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "mask_ratio": "objective.corruption.fraction",
    "model": "encoder.name",
    "num_workers": "data.workers",
    "output": "output_dir",
    "steps": "training.duration.steps",
    "wd": "optimizer.weight_decay",
}
"""Other names of the field for settings, which no likeness of letters leads to."""
_IN_WORDS = ("_type", "_parsing", "_than", "_than_equal", "_error", "_short", "_float", "_invalid")
"""How pydantic's names of errors end whose constraints `Setting.words` explains."""


def check(document: Document, model: type[S]) -> S:
    """The settings in `document`; a `RecipeError` with everything that is wrong in it otherwise.

    Pydantic's strict mode for JSON is what a recipe needs: it takes lists for tuples and integers for floats, but no
    text for numbers and no numbers for booleans.
    """
    problems: dict[str, Problem] = {}
    try:
        settings = model.model_validate_json(json.dumps(document.values), strict=True)
        if not document.problems:
            return settings.at("")
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            for problem in _explain(details, model, document):
                problems.setdefault(problem.setting, problem)  # each member of a union complains
    raise RecipeError([*document.problems, *problems.values()], document.name)


def _explain(details: ErrorDetails, model: type[BaseModel], document: Document) -> Iterator[Problem]:
    keys, kind, refused = keys_of(details, document.values), details["type"], details.get("ctx", {}).get("error")
    if isinstance(refused, Exception):  # by a validator of ours
        yield from document.problems_of(refused, keys)
        return
    if kind.startswith("union_tag") and isinstance(document.value(keys), dict):
        keys, kind = (*keys, KIND), "missing" if kind == "union_tag_not_found" else kind
    setting, value = resolve(model, keys, document.values), document.value(keys)
    allowed = setting.words() if setting else ""
    if kind == "extra_forbidden":
        yield _unknown_key(keys, model, document)
    elif kind == "missing":
        yield document.problem(keys, "missing", allowed=allowed)
    elif details["loc"][-1] == "[key]":
        yield document.problem(keys, found=shown(keys[-1]), allowed=details["msg"])
    else:
        if not (allowed and kind.endswith(_IN_WORDS)):
            allowed = f"{allowed}; {details['msg']}" if allowed else details["msg"]
        advice = _advice(value, setting) if setting else ""
        yield document.problem(keys, found=shown(value), allowed=allowed, advice=advice)


def _unknown_key(keys: Keys, model: type[BaseModel], document: Document) -> Problem:
    key, above = str(keys[-1]), keys[:-1]
    union = resolve(model, above, document.values)
    section = union.narrowed((document.value(above) or {}).get(KIND)).model if union else None
    siblings = list(section.model_fields) if section else []
    kinds = [kind for kind, variant in (union.variants if union else {}).items() if key in variant.model_fields]
    paths = {dotted(known): None for known, _ in every_setting(model)}
    elsewhere = [path for path in paths if path.rpartition(".")[2] == key]
    synonym = f".{SYNONYMS.get(key, key)}"
    meant = [path for path in paths if key in SYNONYMS and f".{path}".endswith(synonym)]
    meant.sort(key=lambda path: not path.startswith(f"{dotted(above)}."))  # of the same section first
    if kinds:
        advice = f"{key} belongs to {KIND}: {listed(kinds)}"
    elif "." in key:
        advice = "dotted keys are for the command line; in a file, nest them"
    elif len(elsewhere) == 1 or meant:
        advice = f"did you mean {(meant or elsewhere)[0]}?"
    else:
        match = nearest(key, siblings)
        meant = dotted((*above, match)) if match else _elsewhere(key, above, list(paths))
        advice = f"did you mean {meant}?" if meant else ""
    return document.problem(keys, "unknown key", allowed=", ".join(siblings), advice=advice)


def _elsewhere(key: str, above: Keys, paths: list[str]) -> str:
    """The setting of another section, or of another name of the field, that a mistyped key was probably meant to be."""
    if (match := nearest(key, SYNONYMS)) is not None:
        found = [path for path in paths if f".{path}".endswith(f".{SYNONYMS[match]}")]
        found.sort(key=lambda path: not path.startswith(f"{dotted(above)}."))
        return found[0] if found else ""
    match = nearest(key, {path.rpartition(".")[2] for path in paths})
    found = [path for path in paths if path.rpartition(".")[2] == match]
    return found[0] if len(found) == 1 else ""


def _advice(value: Any, setting: Setting) -> str:
    """How the value was probably meant."""
    if setting.is_text and isinstance(value, int | float):
        return f"this is no text: put it in quotes, '{shown(value)}'"
    if not isinstance(value, str):
        return ""
    word = value.strip().lower()
    if match := nearest(value, [choice for choice in setting.choices if isinstance(choice, str)]):
        return f"did you mean {match}?"
    if setting.admits(bool) and word in ("yes", "on", "true", "no", "off", "false"):
        return f"write {'true' if word in ('yes', 'on', 'true') else 'false'}, without quotes"
    if setting.nullable and word in ("null", "none", "~", ""):
        return "write null, without quotes"
    if setting.admits(int, float):
        try:
            number = float(word.replace("_", "").replace(",", ""))
        except ValueError:
            return ""
        return f"this is text: write it as a plain number, {shown(int(number) if number.is_integer() else number)}"
    return ""
