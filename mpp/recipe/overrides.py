"""`key=value` on the command line: what it replaces in the file.

Values are YAML, as in the file; where a setting is text, the value is taken as it is. Of the same key given twice the
last counts; otherwise the order does not matter. A mapping replaces the mapping of the file, it is not merged into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from mpp.recipe.errors import COMMAND_LINE, Problem, shown
from mpp.recipe.parse import Document, read_value
from mpp.recipe.yaml import DEEPEST
from mpp.settings import Duration
from mpp.type_hints import KIND, Hint, Keys, dotted, resolve, settings_of


def apply_overrides(document: Document, model: type[BaseModel], overrides: Iterable[str]) -> None:
    """Write each `a.b.c=value` over what the file says; mistakes are added to the document's problems."""
    texts: dict[Keys, str] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = tuple(path.strip().split("."))
        if len(keys) > DEEPEST:
            document.problems.append(Problem(COMMAND_LINE, f"{path[:20]}…", f"nested more than {DEEPEST} deep"))
        elif not equals or not all(keys) or path.startswith("-"):
            example = f"{path.lstrip('-').strip('.') or 'seed'}={text or '…'}"
            complaint = f"not an override: write key=value, as in {example}"
            document.problems.append(Problem(COMMAND_LINE, override or "''", complaint))
        else:
            if short := _shorthand(resolve(model, keys, document.values), text):
                keys = (*keys, short)
            texts.pop(keys, None)
            texts[keys] = text
    # Sections before what is in them, kinds before what depends on them: so the order they came in does not matter.
    for keys in sorted(texts, key=lambda keys: (len(keys), keys[-1] != KIND)):
        _override(document, model, keys, texts[keys])
        complete(model, document.values)


def complete(model: type[BaseModel], values: dict[str, Any]) -> None:
    """Write down what the file may leave out: the kind where the default has one, sections without a default.

    Text where a section has a shorthand becomes that one setting: `encoder: X` is `encoder: {source: X}`.
    """
    for name, setting in settings_of(model).items():
        if name not in values and setting.required and setting.hint.model not in (None, Duration):
            values[name] = {}  # so that the settings missing in it are named, not just the section
        value = values.get(name)
        if isinstance(value, str) and (short := _shorthand(setting.hint, value)):
            value = values[name] = {short: value}
        if isinstance(value, dict):
            if setting.hint.variants and KIND not in value and isinstance(setting.default, BaseModel):
                value[KIND] = getattr(setting.default, KIND)
            inner = setting.hint.narrowed(value.get(KIND)).model
            if inner is not None:
                complete(inner, value)


def _override(document: Document, model: type[BaseModel], keys: Keys, text: str) -> None:
    section = document.values
    for depth, key in enumerate(keys[:-1], start=1):
        hint = resolve(model, keys[:depth], document.values)
        inner = section.get(key)
        if not isinstance(inner, dict) and (inner is not None or (hint and not hint.has_keys)):
            complaint = f"{dotted(keys[:depth])} has no settings in it"
            found = f"{shown(inner)} in {document.location(keys[:depth])}" if inner is not None else ""
            allowed = f"{dotted(keys[:depth])}=…, {hint.words()}" if hint else ""
            document.problems.append(Problem(COMMAND_LINE, dotted(keys), complaint, found, allowed))
            return
        if inner is None:
            section[key] = {}
            document.locations[keys[:depth]] = COMMAND_LINE
        section = section[key]
    value, problems = _value(text, resolve(model, keys, document.values), dotted(keys))
    document.problems.extend(problems)
    if not problems:
        for outdated in _outdated(section, resolve(model, keys[:-1], document.values), keys[-1], value):
            if document.location((*keys[:-1], outdated)) != COMMAND_LINE:
                del section[outdated]
                document.forget((*keys[:-1], outdated))
        section[keys[-1]] = value
        document.forget(keys)
        document.locations[keys] = COMMAND_LINE


def _shorthand(hint: Hint | None, text: str) -> str | None:
    """The setting that plain text stands for, where a section is meant that has one."""
    plain = text.strip() and text.strip()[0] not in "{[" and text.strip() not in ("null", "~")
    return getattr(hint.model, "shorthand", None) if hint and plain else None


def _value(text: str, hint: Hint | None, setting: str) -> tuple[Any, list[Problem]]:
    """The value of `text`: literally where text is meant, so that `output_dir=2024` or `a: b` need no second quotes."""
    bare = text.strip()
    if hint is not None and hint.is_text and bare not in ("", "null", "~") and bare[0] not in "'\"":
        return bare, []
    return read_value(text, setting)


def _outdated(section: dict[str, Any], hint: Hint | None, key: str | int, value: Any) -> list[str]:
    """The keys of the file that lose their meaning when `key` of `section` becomes `value`."""
    if hint is None:
        return []
    if hint.model is Duration and value is not None:
        return [unit for unit in section if unit != key]
    old, new = hint.narrowed(section.get(KIND)).model, hint.narrowed(value).model
    if key == KIND and hint.variants and old and new and old is not new:
        return [name for name in section if name in old.model_fields and name not in new.model_fields]
    return []
