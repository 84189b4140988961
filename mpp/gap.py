"""Measure how far masked patch prediction is from supervised pre-training, and from no pre-training at all.

Every arm and seed runs in a process of its own and is never run again once it is finished: give the same command
again to resume after a stop. Writes results.json and report.html; --report-only runs nothing and writes them again from
the finished units.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpp.cli import run_command

if TYPE_CHECKING:
    from mpp.recipe import GapRecipe


REPORT_ONLY = "--report-only"
"""Short for a setting."""


def main(arguments: list[str] | None = None) -> int:
    """`python -m mpp.gap RECIPE [key=value …] [--report-only]`."""
    given = sys.argv[1:] if arguments is None else arguments
    given = ["study.report_only=true" if argument == REPORT_ONLY else argument for argument in given]
    return run_command("gap", __doc__ or "", _gap, given)


def _gap(recipe: GapRecipe) -> int:
    from mpp.study.run import study  # late: torch, timm, accelerate and datasets take seconds

    return study(recipe)


if __name__ == "__main__":
    sys.exit(main())
