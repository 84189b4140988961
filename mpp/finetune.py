"""Train a classifier from a pre-trained encoder, or from scratch: fine-tuning, or a linear layer on frozen features.

`encoder=X` is a run, an exported encoder folder, or `timm:NAME`; without it, the same command trains from scratch.
Settings are chosen on a dev split of train; the test split is read once, at the end. Give the same command again to go
on after a stop.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpp.cli import run_command

if TYPE_CHECKING:
    from mpp.recipe import FinetuneRecipe


def main(arguments: list[str] | None = None) -> int:
    """`python -m mpp.finetune RECIPE [key=value …]`, or through `accelerate launch -m`."""
    return run_command("finetune", __doc__ or "", _finetune, arguments)


def _finetune(recipe: FinetuneRecipe) -> int:
    from mpp.commands.finetune import finetune  # late: torch, timm, accelerate and datasets take seconds

    return finetune(recipe)


if __name__ == "__main__":
    sys.exit(main())
