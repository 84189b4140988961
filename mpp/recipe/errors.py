"""Errors of recipes: the line of each setting, a `Problem` for each mistake, one `RecipeError` for all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mpp.recipe.yaml import in_line
from mpp.settings import SettingError, without_name
from mpp.type_hints import Keys, dotted

WIDTH = 79


class SourceLocation(NamedTuple):
    """Where something was written: a line of a file, or the command line."""

    name: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name


COMMAND_LINE = SourceLocation("command line")


class Problem(NamedTuple):
    """One mistake: where it was written, the setting, what was found, what is allowed."""

    location: SourceLocation
    setting: str
    complaint: str = ""
    found: str = ""
    allowed: str = ""
    advice: str = ""

    def __str__(self) -> str:
        heading, complaint = f"{self.location}: {self.setting}", self.complaint
        if not self.setting:
            heading, complaint = wrapped(f"{heading}{complaint}", "", "    "), ""
        notes = [("", complaint), ("found: ", self.found), ("", self.advice), ("allowed: ", self.allowed)]
        lines = [wrapped(text, f"    {label}", " " * (4 + (len(label) or 2))) for label, text in notes if text]
        return "\n".join([heading, *lines])


class RecipeError(ValueError):
    """A recipe that cannot be used; its message lists every problem that was found, file by file, line by line."""

    def __init__(self, problems: Iterable[Problem], name: str) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.location == COMMAND_LINE, problem.location))
        overridden = sum(problem.location == COMMAND_LINE for problem in self.problems)
        names = [name] * (overridden < len(self.problems)) + [f"the {COMMAND_LINE}"] * (overridden > 0)
        count = [f"{len(self.problems)} problems with {' and '.join(names)}"] if len(self.problems) > 1 else []
        super().__init__("\n\n".join([*count, *map(str, self.problems)]))


@dataclass
class Document:
    """The values of a recipe, where each was written, and what was already found to be wrong."""

    name: str
    values: Any = None
    locations: dict[Keys, SourceLocation] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know of how the recipe was read."""

    def location(self, keys: Keys) -> SourceLocation:
        """Where the value at `keys` was written; for one that is not there, where its section was."""
        while keys and keys not in self.locations:
            keys = keys[:-1]
        return self.locations.get(keys, SourceLocation(self.name))

    def value(self, keys: Keys) -> Any:
        """The value at `keys`, or None where nothing is."""
        value = self.values
        for key in keys:
            try:
                value = value[key]
            except (LookupError, TypeError):
                return None
        return value

    def problem(self, keys: Keys, complaint: str = "", **notes: str) -> Problem:
        """What is wrong with the value at `keys`; the notes are `found`, `allowed` and `advice`."""
        return Problem(self.location(keys), dotted(keys), complaint, **notes)

    def problems_of(self, error: Exception, above: Keys = ()) -> list[Problem]:
        """What a check of the settings at `above` complains about, with the line and the value of each setting."""
        complaints = error.complaints if isinstance(error, SettingError) else {"": str(error)}
        written, problems = {dotted(keys): keys for keys in self.locations}, []
        for name, complaint in complaints.items():
            path = dotted((*above, name)).removesuffix(".")
            keys = written.get(path, tuple(path.split(".")))
            overridden = any(self.locations[k] == COMMAND_LINE for k in self.locations if k[: len(keys)] == keys)
            location = COMMAND_LINE if overridden else self.location(keys)  # an override does not go with the file
            found = shown(self.value(keys)) if path in written and path else ""
            found = found if found[-1:] != "…" else ""
            problems.append(Problem(location, path, without_name(path, complaint), found))
        return problems

    def forget(self, keys: Keys) -> None:
        """Drop the locations at and below `keys`, whose values are being replaced or removed."""
        for known in [known for known in self.locations if known[: len(keys)] == keys]:
            del self.locations[known]


def shown(value: Any, limit: int = 60) -> str:
    """`value` as YAML in one line, text in quotes, cut when it is long."""
    text = repr(value) if isinstance(value, str) else in_line(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def wrapped(text: str, start: str, indent: str) -> str:
    """`text` in lines of a terminal's width, the first after `start`, the others after `indent`."""
    return textwrap.fill(
        text, WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
