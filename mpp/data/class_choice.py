"""The classes that `data.classes` chooses, and the rows of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpp.data.arrow_table import ArrowTable, Selection, class_numbers, require_column
from mpp.data.sampler import Numbers
from mpp.settings import SettingError

SHOWN = 20
"""Classes that an error names."""


class ClassChoice(NamedTuple):
    """Some of the classes of a label column.

    Attributes:
        column: that holds the labels.
        names: of all classes of the data set.
        chosen: the numbers of those to take, ascending; None takes all.
    """

    column: str
    names: list[str]
    chosen: tuple[int, ...] | None

    def check(self, source: str) -> None:
        """Raise SettingError if a number is that of no class."""
        if wrong := [number for number in self.chosen or () if number >= len(self.names)]:
            some = [f"{number} {name}" for number, name in enumerate(self.names[:SHOWN])]
            there = ", ".join(some) + (", …" if len(self.names) > SHOWN else "")
            message = f"classes has {', '.join(map(str, wrong))}, but {source} has {len(self.names)} classes: {there}"
            raise SettingError({"classes": message})

    def numbers(self, rows: Selection, name: str) -> Numbers:
        """The class of each row among all classes, int64 `(rows,)`; −1 for none. `name` is for messages."""
        require_column(rows.table, self.column, "label_column", name)
        return class_numbers(rows.table, self.column, self.names)[0]

    def of(self, rows: Selection, name: str) -> Selection:
        """The rows of the chosen classes."""
        if self.chosen is None:
            return rows
        return rows.select(np.flatnonzero(np.isin(self.numbers(rows, name), self.chosen)))

    def check_all_in(self, rows: Selection, name: str) -> None:
        """Raise SettingError if one of the chosen classes has no image in `rows`."""
        missing = sorted({*(self.chosen or ())} - {*self.numbers(rows, name).tolist()})
        if missing:
            listed = ", ".join(f"{number} ({self.names[number]})" for number in missing)
            raise SettingError({"classes": f"classes without an image in {name}: {listed}; leave them out"})

    def renumber(self, table: ArrowTable) -> ArrowTable:
        """Number the labels of a table of chosen rows from 0, in place."""
        if self.chosen is not None and table.labels is not None:
            table.labels = np.searchsorted(self.chosen, table.labels).astype(np.int64)
            table.class_names = [self.names[number] for number in self.chosen]
        return table

    def described(self, rows: Selection, name: str) -> str:
        """`classes 0 to 4 of 10: 25,000 of 50,000`."""
        assert self.chosen is not None
        first, last, count = self.chosen[0], self.chosen[-1], len(self.chosen)
        if count == 1:
            which = f"class {first}"
        elif last - first == count - 1:
            which = f"classes {first} to {last}"
        else:
            which = f"classes {', '.join(map(str, self.chosen))}" if count <= SHOWN else f"{count} classes"
        taken, all_rows = len(self.of(rows, name).split_rows), len(rows.split_rows)
        return f"{which} of {len(self.names):,}: {taken:,} of {all_rows:,}"
