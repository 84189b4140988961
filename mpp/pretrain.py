"""Pre-train a Vision Transformer on images: by masked patch prediction, or by classification for comparison.

Give the same command again to resume after a stop; a run that is finished says so.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpp.cli import run_command

if TYPE_CHECKING:
    from mpp.recipe import PretrainRecipe


def main(arguments: list[str] | None = None) -> int:
    """`python -m mpp.pretrain RECIPE [key=value …]`, or through `accelerate launch -m`."""
    return run_command("pretrain", __doc__ or "", _pretrain, arguments)


def _pretrain(recipe: PretrainRecipe) -> int:
    from mpp.commands.pretrain import pretrain  # late: torch, timm, accelerate and datasets take seconds

    return pretrain(recipe)


if __name__ == "__main__":
    sys.exit(main())
