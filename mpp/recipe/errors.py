"""Errors of recipes: one `Problem` for each mistake, one `RecipeError` for all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mpp.recipe.yaml import in_line

WIDTH = 79


@dataclass(frozen=True, order=True)
class SourceLocation:
    """Where something was written: a line of a file, or the command line."""

    name: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name


COMMAND_LINE = SourceLocation("command line")


@dataclass(frozen=True)
class Problem:
    """One mistake: where it was written, the setting, what was found, what is allowed."""

    location: SourceLocation
    setting: str
    complaint: str = ""
    found: str = ""
    allowed: str = ""
    advice: str = ""

    def __str__(self) -> str:
        notes = [("found: ", self.found), ("allowed: ", self.allowed), ("", self.advice)]
        if self.setting:
            notes.insert(0, ("", self.complaint))
            heading = f"{self.location}: {self.setting}"
        else:
            heading = wrapped(f"{self.location}: {self.complaint}", "", "    ")
        return "\n".join(
            [heading, *(wrapped(text, f"    {label}", " " * (4 + (len(label) or 2))) for label, text in notes if text)]
        )


class RecipeError(ValueError):
    """A recipe that cannot be used; its message lists every problem that was found, file by file, line by line."""

    def __init__(self, problems: Iterable[Problem], name: str) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.location == COMMAND_LINE, problem.location))
        count = [f"{len(self.problems)} problems with {name}"] if len(self.problems) > 1 else []
        super().__init__("\n\n".join([*count, *map(str, self.problems)]))


def shown(value: Any, limit: int = 60) -> str:
    """`value` as YAML in one line, text in quotes, cut when it is long."""
    text = repr(value) if isinstance(value, str) else in_line(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def wrapped(text: str, start: str, indent: str) -> str:
    """`text` in lines of a terminal's width, the first after `start`, the others after `indent`."""
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(text)
