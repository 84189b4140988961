"""Write the features of your images: an array, and a Parquet table with a name for each row.

The split that `data.split` names is read whole, nothing is held out; the encoder's own image size is used unless
`data.image_size` says otherwise. Rows of images that cannot be decoded are NaN.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpp.cli import run_command

if TYPE_CHECKING:
    from mpp.recipe import EmbedRecipe


def main(arguments: list[str] | None = None) -> int:
    """`mpp embed RECIPE encoder=X [key=value …]`."""
    return run_command("embed", __doc__ or "", _embed, arguments)


def _embed(recipe: EmbedRecipe) -> int:
    from mpp.commands.embed import embed  # late: torch, timm, accelerate and datasets take seconds

    return embed(recipe)


if __name__ == "__main__":
    sys.exit(main())
