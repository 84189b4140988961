"""Measure what the frozen features of an encoder are worth: linear few-shot, nearest neighbours, linear probe.

`encoder=X` is a run, an exported encoder folder, `timm:NAME`, or one of the controls `raw_pixels` and `patch_colors`.
Features are extracted once and kept; settings are chosen on a dev split of train, never on test. Images have the
encoder's own size unless `data.image_size` says otherwise.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpp.cli import run_command

if TYPE_CHECKING:
    from mpp.recipe import EvaluateRecipe


def main(arguments: list[str] | None = None) -> int:
    """`python -m mpp.evaluate RECIPE [key=value …]`, or through `accelerate launch -m`."""
    return run_command("evaluate", __doc__ or "", _evaluate, arguments)


def _evaluate(recipe: EvaluateRecipe) -> int:
    from mpp.commands.evaluate import evaluate  # late: torch, timm, accelerate and datasets take seconds

    return evaluate(recipe)


if __name__ == "__main__":
    sys.exit(main())
