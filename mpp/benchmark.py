"""Measure a pre-training recipe on this machine: loader, training step, what the objective adds to it, a short run.

Both sides of every ratio are measured in turn. The figures are saved beside output_dir, and compared with those of the
last time. It takes about a minute and a half; MPP_BENCHMARK_SECONDS=5 in the environment makes it shorter and rougher.
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
