"""A search over settings: its candidates, and the recipe of each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from mpp.files import write_text
from mpp.recipe import FinetuneRecipe, differences
from mpp.training.settings import SearchSettings

DIVERGED = "diverged.json"
"""In the folder of a candidate whose loss did not stay finite: its recipe."""


class Candidate(NamedTuple):
    """A combination of settings, and its accuracy and loss on the dev split; None if its run diverged."""

    lr: float
    pool: str | None
    dev_accuracy: float | None = None
    dev_loss: float | None = None

    def __str__(self) -> str:
        return f"lr={self.lr:g}" + (f",pool={self.pool}" if self.pool else "")


def combinations(recipe: FinetuneRecipe) -> list[Candidate]:
    """Every candidate of a search."""
    rates = recipe.search.lr or (recipe.optimizer.lr,)
    pools = recipe.search.pool or (recipe.encoder.pool,)
    return [Candidate(lr, pool) for pool, lr in itertools.product(pools, rates)]


def with_candidate(recipe: FinetuneRecipe, chosen: Candidate, **changes: Any) -> FinetuneRecipe:
    """The recipe of a single run with these settings."""
    return recipe.model_copy(
        update={
            "optimizer": recipe.optimizer.model_copy(update={"lr": chosen.lr}),
            "encoder": recipe.encoder.model_copy(update={"pool": chosen.pool}),
            "search": SearchSettings(),
            **changes,
        }
    )


def note_divergence(recipe: FinetuneRecipe, folder: Path) -> None:
    """Remember that the run of this recipe diverged."""
    write_text(folder / DIVERGED, recipe.model_dump_json() + "\n")


def is_known_to_diverge(recipe: FinetuneRecipe, folder: Path) -> bool:
    """Whether the run of this very recipe diverged before: it would do so again."""
    try:
        before = FinetuneRecipe.model_validate_json((folder / DIVERGED).read_text())
    except (OSError, ValueError):
        return False
    return all(path == "output_dir" for path, _, _ in differences(before, recipe))
