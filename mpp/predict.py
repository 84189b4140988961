"""Classify your images by a fine-tuned network: classes and probabilities, an array and a Parquet table.

`data.source` says which images: all images of the split that `data.split` names (train) are classified, with labels or
without. For unlabelled images give their folder, or a table with only their paths; for part of a split, a slice such as
data.split=test[:100]. The classifier's own image size is used.

Rows of images that cannot be decoded are NaN.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpp.cli import run_command

if TYPE_CHECKING:
    from mpp.recipe import PredictRecipe


def main(arguments: list[str] | None = None) -> int:
    """`mpp predict RECIPE encoder=X [key=value …]`."""
    return run_command("predict", __doc__ or "", _predict, arguments)


def _predict(recipe: PredictRecipe) -> int:
    from mpp.commands.embed import predict  # late: torch, timm, accelerate and datasets take seconds

    return predict(recipe)


if __name__ == "__main__":
    sys.exit(main())
