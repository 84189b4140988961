"""`key=value` on the command line: what it replaces in the file.

Values are YAML, as in the file; where a setting is text, the value is taken as it is. Of the same key given twice the
last counts; otherwise the order does not matter. A mapping replaces the mapping of the file, it is not merged into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from mpp.recipe.errors import COMMAND_LINE, Document, Problem, shown
from mpp.recipe.parse import read_value
from mpp.recipe.yaml import DEEPEST
from mpp.settings import Duration
from mpp.type_hints import KIND, Keys, Setting, dotted, read_hint, resolve


def apply_overrides(document: Document, model: type[BaseModel], overrides: Iterable[str]) -> None:
    """Replace values of the file by each `a.b.c=value`; mistakes are added to the document's problems."""
    complete(document.values, read_hint(model))
    texts: dict[Keys, str] = {}
    for override in _joined(document, model, overrides):
        path, equals, text = override.partition("=")
        keys = tuple(path.strip().split("."))
        if len(keys) > DEEPEST:
            document.problems.append(Problem(COMMAND_LINE, f"{path[:20]}…", f"nested more than {DEEPEST} deep"))
        elif not equals or not all(keys) or path.startswith("-"):
            name = "data.source" if "/" in path else path.lstrip("-").strip(".") or "seed"
            example = f"{name}={text or (path if '/' in path else '…')}"
            complaint = f"not an override: write key=value, as in {example}"
            document.problems.append(Problem(COMMAND_LINE, override or "''", complaint))
        else:
            short = _shorthand(resolve(model, keys, document.values), text)
            texts[(*keys, short) if short else keys] = text
    # Sections before what is in them, kinds before what depends on them: so the order they came in does not matter.
    for keys in sorted(texts, key=lambda keys: (len(keys), keys[-1] != KIND)):
        _override(document, model, keys, texts[keys])
        complete(document.values, read_hint(model))


def _joined(document: Document, model: type[BaseModel], overrides: Iterable[str]) -> Iterator[str]:
    """The overrides, without any `key value`, for which a problem is noted: the shell makes two arguments of it."""
    given = [*overrides]
    while given:
        first = given.pop(0)
        keys = tuple(first.split("."))
        known = "=" not in first and len(keys) <= DEEPEST and resolve(model, keys, document.values) is not None
        if known and given and "=" not in given[0] and not given[0].startswith("-"):
            meant = f"{first}={given[0]}"
            complaint = f"not an override: write key=value, without a space, as in {meant}"
            document.problems.append(Problem(COMMAND_LINE, f"{first} {given.pop(0)}", complaint))
        else:
            yield first


def complete(value: Any, setting: Setting | None) -> Any:
    """`value` with what recipes may leave out or write in short, for strict checks.

    Text where a section has a shorthand becomes that one setting: `encoder: X` is `encoder: {source: X}`. A kind is
    added where the default has one. Integers may be written as 5e4.
    """
    if setting is None:
        return value
    if isinstance(value, float) and value.is_integer() and setting.admits(int) and not setting.admits(float):
        return int(value)
    if isinstance(value, str) and (short := _shorthand(setting, value)):
        value = {short: value}
    if isinstance(value, list):
        return [complete(item, setting.item(number)) for number, item in enumerate(value)]
    if isinstance(value, dict):
        if setting.variants and KIND not in value and isinstance(setting.default, BaseModel):
            value[KIND] = getattr(setting.default, KIND)
        inner = setting.narrowed(value.get(KIND))
        value.update({key: complete(below, inner.item(key)) for key, below in value.items()})
    return value


def _override(document: Document, model: type[BaseModel], keys: Keys, text: str) -> None:
    for depth in range(1, len(keys)):
        above = keys[:depth]
        setting, inner = resolve(model, above, document.values), document.value(above)
        if inner is None and (setting is None or setting.models or setting.admits(dict, Any)):
            document.value(above[:-1])[above[-1]] = {}
            document.locations[above] = COMMAND_LINE
        elif not isinstance(inner, dict):
            complaint = f"{dotted(above)} has no settings in it"
            found = f"{shown(inner)} in {document.location(above)}" if inner is not None else ""
            allowed = f"{dotted(above)}=…, {setting.words()}" if setting else ""
            document.problems.append(Problem(COMMAND_LINE, dotted(keys), complaint, found, allowed))
            return
    setting, bare = resolve(model, keys, document.values), text.strip()
    if setting and setting.is_text and bare not in ("", "null", "~") and bare[0] not in "'\"":
        value = bare  # so that `output_dir=2024` or `a: b` need no second quotes
    else:
        value, problems = read_value(text, dotted(keys))
        document.problems.extend(problems)
        if problems:
            return
    section = document.value(keys[:-1])
    for outdated in _outdated(section, resolve(model, keys[:-1], document.values), keys[-1], value):
        if document.location((*keys[:-1], outdated)) != COMMAND_LINE:
            del section[outdated]
            document.forget((*keys[:-1], outdated))
    section[keys[-1]] = value
    document.forget(keys)
    document.locations[keys] = COMMAND_LINE


def _shorthand(setting: Setting | None, text: str) -> str | None:
    """The setting that plain text is for, in a section that has a shorthand."""
    plain = text.strip() and text.strip()[0] not in "{[" and text.strip() not in ("null", "~")
    return getattr(setting.model, "shorthand", None) if setting and plain else None


def _outdated(section: dict[str, Any], setting: Setting | None, key: str | int, value: Any) -> list[str]:
    """The keys of the file that have no meaning any more when `key` of `section` becomes `value`."""
    if setting and setting.model is Duration and value is not None:
        return [unit for unit in section if unit != key]
    if setting and setting.variants and key == KIND:
        old, new = setting.narrowed(section.get(KIND)).model, setting.narrowed(value).model
        return [name for name in section if old and new and name in {*old.model_fields} - {*new.model_fields}]
    return []
