"""What the page of a run says of stops and extensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpp.commands.resumptions import FILE, Resumption, extensions, note_resumption, resumptions, stops


def lines(count: int, *started: int) -> list[dict[str, Any]]:
    """Metrics of so many steps; a process logs the time of its first step with its first line."""
    return [
        {"step": step, **({"seconds_to_first_step": 1.0} if step in started else {})} for step in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("found", "metrics", "said"),
    [
        ([], lines(9, 1), ""),
        ([Resumption(3)], lines(9, 1, 4), "1 stop; resumed from step 3"),
        ([Resumption(3), Resumption(5)], lines(9, 1, 4, 6), "2 stops; resumed from step 3 and 5"),
        # Stopped before the first line was logged: the metrics have one first line.
        ([Resumption(3)], [{"step": 5, "seconds_to_first_step": 1.0}], "1 stop; resumed from step 3"),
        ([Resumption(0)], lines(9, 1), "1 stop; started again from the beginning 1 time"),
        # Of a version that wrote nothing down, and then of this one.
        ([], lines(9, 1, 5), "1 stop; resumed between steps 4 and 5"),
        ([Resumption(7)], lines(9, 1, 5, 8), "2 stops; resumed from step 7; resumed between steps 4 and 5"),
        ([Resumption(6, 9)], lines(9, 1, 7), ""),
        ([Resumption(2), Resumption(6, 9)], lines(9, 1, 3, 7), "1 stop; resumed from step 2"),
    ],
)
def test_every_stop_is_counted_once_and_an_extension_is_none(
    found: list[Resumption], metrics: list[dict[str, Any]], said: str
):
    assert stops(found, metrics) == said


def test_extensions_have_their_steps_and_lengths():
    assert extensions([Resumption(2), Resumption(6, 9), Resumption(9, 1200)]) == (
        "extended from step 6 to 9 steps and from step 9 to 1,200 steps")  # fmt: skip
    assert extensions([Resumption(2)]) == ""


def test_a_first_start_is_not_written_down_and_a_cut_line_is_left_out(tmp_path: Path):
    note_resumption(tmp_path, None, 9)
    assert resumptions(tmp_path) == []
    (tmp_path / "recipe.yaml").write_text("")
    note_resumption(tmp_path, None, 9)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "exten')
    assert resumptions(tmp_path) == [Resumption(0)]
