"""Measure a pre-training recipe on this machine: speed of a step, what the objective adds to it, and the loader.

Both sides of every ratio are measured in turn within this one run.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpp.cli import run_command

if TYPE_CHECKING:
    from mpp.recipe import PretrainRecipe


def main(arguments: list[str] | None = None) -> int:
    """`python -m mpp.benchmark RECIPE [key=value …]`, for any recipe of `mpp.pretrain`."""
    return run_command("benchmark", __doc__ or "", _benchmark, arguments, reads="pretrain")


def _benchmark(recipe: PretrainRecipe) -> int:
    from mpp.commands.benchmark import benchmark  # late: torch, timm, accelerate and datasets take seconds

    return benchmark(recipe)


if __name__ == "__main__":
    sys.exit(main())
