"""From a YAML file to plain values that remember their lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mpp.recipe.errors import COMMAND_LINE, Keys, Place, Problem, RecipeError, dotted, listed, nearest, shown
from mpp.recipe.yaml import Loader, read_scalar


@dataclass
class Document:
    """The values of a recipe, where each was written, and what was already seen to be wrong."""

    name: str
    values: Any = None
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, keys: Keys) -> Place:
        """Where the value at `keys` was written; for one that is not there, where its section was."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys, Place(self.name))

    def value(self, keys: Keys) -> Any:
        """The value at `keys`, or None where nothing is."""
        value = self.values
        for key in keys:
            if isinstance(value, dict) or (isinstance(value, list) and isinstance(key, int) and key < len(value)):
                value = value.get(key) if isinstance(value, dict) else value[key]  # type: ignore[index]
            else:
                return None
        return value

    def find(self, path: str) -> Keys:
        """The keys of a dotted path, or of the section above that was written."""
        known = {dotted(keys): keys for keys in self.places}
        while path and path not in known:
            path = path.rpartition(".")[0]
        return known.get(path, ())

    def forget(self, keys: Keys) -> None:
        """Drop the places at and below `keys`, whose values are being replaced or removed."""
        for known in [known for known in self.places if known[: len(keys)] == keys]:
            del self.places[known]


def read_document(path: str | Path) -> Document:
    """The recipe at `path`; a file that cannot be read or is no mapping raises a `RecipeError`."""
    name = str(path)
    document = _parse(_read_text(Path(path)), name)
    if document.values is None:
        raise _refusal(Place(name), "the file is empty; a recipe begins with a line such as 'command: pretrain'")
    if not isinstance(document.values, dict):
        found = f"found {shown(document.values)}"
        raise _refusal(Place(name), f"a recipe is a mapping of settings, such as 'command: pretrain'; {found}")
    return document


def read_value(text: str, setting: str) -> tuple[Any, list[Problem]]:
    """The value of `setting=text` on the command line, and what is wrong with it."""
    try:
        document = _parse(text, COMMAND_LINE.name)
    except RecipeError as error:
        return None, [Problem(COMMAND_LINE, setting, problem.complaint, shown(text)) for problem in error.problems]
    below = [Problem(COMMAND_LINE, f"{setting}.{known.setting}", known.complaint) for known in document.problems]
    return document.values, below


def _parse(text: str, name: str) -> Document:
    document = Document(name)
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        written = text.splitlines()[line - 1].strip() if 0 < line <= len(text.splitlines()) else ""
        complaint = f"not valid YAML: {error.problem or error.context}"
        raise _refusal(Place(name, line), complaint, found=shown(written) if written else "") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _refusal(Place(name, line), f"not valid YAML: the character #x{error.character:04x}") from None
    if node is not None:
        document.values = _build(node, (), document)
    return document


def _build(node: yaml.Node, keys: Keys, document: Document) -> Any:
    """The value of `node`, noting places and duplicate keys in `document` on the way."""
    document.places.setdefault(keys, Place(document.name, node.start_mark.line + 1 if keys else 0))
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*keys, number), document) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = Place(document.name, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                document.problems.append(Problem(place, dotted(keys), "a key must be a word, not a list or a mapping"))
                continue
            below = (*keys, key_node.value)
            if key_node.value in entries:
                first = document.places[below].line
                document.problems.append(Problem(place, dotted(below), f"given twice: first in line {first}"))
                document.forget(below)
            document.places[below] = place
            entries[key_node.value] = _build(value_node, below, document)
        return entries
    try:
        return read_scalar(node.tag, node.value)
    except ValueError as error:
        document.problems.append(Problem(document.place(keys), dotted(keys), str(error)))
        return None


def _read_text(path: Path) -> str:
    place = Place(str(path))
    if path.is_dir():
        inside = sorted(str(found) for found in path.glob("*.yaml"))
        raise _refusal(place, "is a directory, not a recipe", f"it holds {listed(inside, 'and')}" if inside else "")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise _refusal(place, "does not exist", _near_matches(path)) from None
    except UnicodeDecodeError as error:
        complaint = f"not a text file in UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        raise _refusal(place, complaint) from None
    except OSError as error:
        raise _refusal(place, f"cannot be read: {error.strerror or error}") from None


def _near_matches(path: Path) -> str:
    """The recipe that was probably meant: one of the same folder, else one of `recipes/`."""
    for folder, pattern in ((path.parent, "*.yaml"), (Path("recipes"), "**/*.yaml")):
        names = {found.name: str(found) for found in sorted(folder.glob(pattern), reverse=True)}
        if match := nearest(path.name, list(names)):
            return f"did you mean {names[match]}?"
    return ""


def _refusal(place: Place, complaint: str, advice: str = "", found: str = "") -> RecipeError:
    return RecipeError([Problem(place, "", complaint, found=found, advice=advice)], place.name)
