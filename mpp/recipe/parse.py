"""From a YAML file to plain values that remember their lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mpp.recipe.errors import COMMAND_LINE, Document, Problem, RecipeError, SourceLocation, shown
from mpp.recipe.shipped import command_of, shipped_name, shipped_recipes
from mpp.recipe.yaml import Loader, read_scalar
from mpp.type_hints import Keys, dotted, listed, nearest


def read_document(path: str | Path, name: str = "") -> Document:
    """The recipe at `path`, `name` in messages; a file that cannot be read or is no mapping raises a `RecipeError`."""
    document = _parse(_read_text(Path(path)), name or str(path))
    if document.values is None:
        raise _refusal(path, "the file is empty; the first line of a recipe is, for example, 'command: pretrain'")
    if not isinstance(document.values, dict):
        found = f"found {shown(document.values)}"
        raise _refusal(path, f"a recipe is a mapping of settings, such as 'command: pretrain'; {found}")
    return document


def read_value(text: str, setting: str) -> tuple[Any, list[Problem]]:
    """The value of `setting=text` on the command line, and what is wrong with it."""
    try:
        document = _parse(text, COMMAND_LINE.name)
    except RecipeError as error:
        return None, [Problem(COMMAND_LINE, setting, problem.complaint, shown(text)) for problem in error.problems]
    found = [Problem(COMMAND_LINE, f"{setting}.{known.setting}", known.complaint) for known in document.problems]
    return document.values, found


def _parse(text: str, name: str) -> Document:
    document = Document(name)
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        written = "".join(text.splitlines()[line - 1 : line]).strip()
        complaint = f"not valid YAML: {error.problem or error.context}"
        raise _refusal(name, complaint, line, shown(written) if written else "") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _refusal(name, f"not valid YAML: the character #x{error.character:04x}", line) from None
    document.values = _build(node, (), document) if node is not None else None
    return document


def _build(node: yaml.Node, keys: Keys, document: Document) -> Any:
    """The value of `node`, noting locations and duplicate keys in `document` on the way."""
    document.locations.setdefault(keys, SourceLocation(document.name, node.start_mark.line + 1 if keys else 0))
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*keys, number), document) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, Any] = {}
        for key_node, value_node in node.value:
            location = SourceLocation(document.name, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                complaint = "a key must be a word, not a list or a mapping"
                document.problems.append(Problem(location, dotted(keys), complaint))
                continue
            below = (*keys, key_node.value)
            if key_node.value in entries:
                first = document.locations[below].line
                document.problems.append(Problem(location, dotted(below), f"given twice: first in line {first}"))
                document.forget(below)
            document.locations[below] = location
            entries[key_node.value] = _build(value_node, below, document)
        return entries
    try:
        return read_scalar(node.tag, node.value)
    except ValueError as error:
        document.problems.append(document.problem(keys, str(error)))
        return None


def _read_text(path: Path) -> str:
    if path.is_dir():
        inside = sorted(str(found) for found in path.glob("*.yaml"))
        advice = f"it holds {listed(inside, 'and')}" if inside else ""
        raise _refusal(path, "is a directory, not a recipe", advice=advice)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise _refusal(path, "does not exist", advice=_near_matches(path)) from None
    except UnicodeDecodeError as error:
        complaint = f"not a text file in UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        raise _refusal(path, complaint) from None
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror or error}") from None


def _near_matches(path: Path) -> str:
    """The recipe that was probably meant: one that ships, of the same folder, or of `recipes/`."""
    name = shipped_name(path) if path.suffix else None
    if name is not None and not Path("recipes", f"{name}.yaml").is_file():
        return f"did you mean the shipped recipe {name}? mpp {command_of(shipped_recipes()[name])} {name}"
    shipped = {} if path.suffix else {name: name for name in shipped_recipes()}
    folders = ((path.parent, "*.yaml"), (Path("recipes"), "**/*.yaml"))
    there = ({found.name: str(found) for found in sorted(where.glob(what), reverse=True)} for where, what in folders)
    for names in (shipped, *there):
        if match := nearest(path.name if names is not shipped else str(path), names):
            return f"did you mean {names[match]}?"
    return "" if path.suffix else "'mpp recipes' lists those that ship with the package"


def _refusal(name: str | Path, complaint: str, line: int = 0, found: str = "", advice: str = "") -> RecipeError:
    return RecipeError([Problem(SourceLocation(str(name), line), "", complaint, found, "", advice)], str(name))
