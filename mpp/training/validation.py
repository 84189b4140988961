"""The loss on held-out images, with fixed crops and corruptions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mpp import randomness
from mpp.data.loader import Batch, EvaluationCrops, batches
from mpp.data.sampler import Numbers
from mpp.objective import scores as sums
from mpp.objective.base import Objective
from mpp.training.distributed import mean_scores, to_device
from mpp.training.state import Callback


def random_rows(crops: EvaluationCrops, images: int, seed: int) -> Numbers:
    """A seeded choice of at most `images` rows of a split: many data sets are sorted by class."""
    return randomness.permutation(randomness.key(seed, "evaluation"), 0, len(crops.images))[:images]


def validation(
    accelerator: Accelerator,
    crops: EvaluationCrops,
    rows: Numbers,
    *,
    batch_size: int,
    workers: int,
    baselines: dict[str, float],
    every: int,
    each: Callable[[Batch, Any], None] | None = None,
) -> Callback:
    """A callback that yields `validation/…`: the objective's scores on these rows, and the baselines.

    The rows are divided among the processes; their corruption is decided by the row number alone. `each` is called
    with every batch of this process and the objective's output.
    """

    def call(step: int, objective: Objective) -> Iterable[tuple[str, Any]]:
        processes = accelerator.num_processes
        # Fewer images than processes: all use all of them, which leaves the means as they are.
        mine = rows[accelerator.process_index :: processes] if len(rows) >= processes else rows
        totals: sums.Scores = {}
        damaged: dict[int, str] = {}
        for batch in on_device(crops, mine, batch_size, workers, accelerator.device):
            damaged |= dict(batch.damaged)
            with torch.no_grad(), accelerator.autocast():
                prediction = objective.forward(batch.pixels, batch.samples, batch.labels)
                totals = sums.add(totals, objective.scores(prediction, batch.pixels))
            if each is not None:
                each(batch, prediction)
        means = objective.summary(mean_scores(accelerator, totals))
        yield from ((f"validation/{name}", value) for name, value in (means | baselines).items())
        if processes > 1:
            damaged = dict(gather_object(list(damaged.items())))
        if damaged:
            where = crops.images.rows.where
            listed = [{"where": str(where(row)), "reason": reason} for row, reason in sorted(damaged.items())]
            yield "validation/damaged_images", listed

    return Callback(every, call)


def on_device(
    crops: EvaluationCrops, rows: Numbers, batch_size: int, workers: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of evaluation crops on a device; loader processes decode them if they do not fit in the cache."""
    chunks = np.array_split(rows, max(-(-len(rows) // batch_size), 1))
    workers = 0 if crops.fits_in_cache(len(rows)) else min(workers, len(chunks))
    return (to_device(batch, device) for batch in batches(crops, chunks, workers=workers))
