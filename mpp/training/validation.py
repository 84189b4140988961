"""The loss on held-out images, with fixed crops and corruptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mpp import randomness
from mpp.data.loader import Batch, EvaluationCrops, batches
from mpp.data.sampler import Numbers
from mpp.objective import scores as sums
from mpp.objective.base import Objective
from mpp.training.state import Callback


def chosen_rows(crops: EvaluationCrops, images: int, seed: int) -> Numbers:
    """Which rows of a split are used: a seeded choice, since many data sets are sorted by class."""
    order = randomness.permutation(randomness.key(seed, "evaluation"), 0, len(crops.images))
    return order[:images]


def validation(
    accelerator: Accelerator,
    crops: EvaluationCrops,
    rows: Numbers,
    *,
    batch_size: int,
    workers: int,
    baselines: dict[str, float],
    every: int,
) -> Callback:
    """A callback that yields `validation/…`: what the objective scores on some rows, and the baselines beside it.

    The rows are divided among the processes; their corruption is decided by the row number alone. Loader processes
    decode them, if there are `workers`, where their crops are too many to stay in memory.
    """

    def call(step: int, objective: Objective) -> Iterable[tuple[str, Any]]:
        processes = accelerator.num_processes
        # Fewer images than processes: all use all of them, which leaves the means as they are.
        mine = rows[accelerator.process_index :: processes] if len(rows) >= processes else rows
        totals: sums.Scores = {}
        was_training = objective.training
        objective.eval()
        damaged: dict[int, str] = {}
        for batch in _loaded(crops, mine, batch_size, workers):
            damaged |= dict(batch.damaged)
            pixels, samples, labels = _moved(batch, accelerator.device)
            with torch.no_grad(), accelerator.autocast():
                prediction = objective.forward(pixels, samples, labels)
                totals = sums.add(totals, objective.scores(prediction, pixels))
        objective.train(was_training)
        if accelerator.num_processes > 1:
            names, values = zip(*totals.items(), strict=True)
            reduced = accelerator.reduce(torch.stack(values).to(accelerator.device), "sum")
            totals = dict(zip(names, reduced, strict=True))
        means = objective.summary(sums.means(totals))
        yield from ((f"validation/{name}", value) for name, value in (means | baselines).items())
        if processes > 1:
            damaged = dict(gather_object(list(damaged.items())))
        if damaged:
            where = crops.images.rows.where
            listed = [{"where": str(where(row)), "reason": reason} for row, reason in sorted(damaged.items())]
            yield "validation/damaged_images", listed

    return Callback(every, call)


def on_device(
    crops: EvaluationCrops, rows: Numbers, batch_size: int, workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches of evaluation crops: uint8 pixels `(b, 3, h, w)`, int64 row numbers `(b,)`, labels or None."""
    return (_moved(batch, device) for batch in _loaded(crops, rows, batch_size, workers))


def _loaded(crops: EvaluationCrops, rows: Numbers, batch_size: int, workers: int) -> Iterator[Batch]:
    parts = np.array_split(rows, max(-(-len(rows) // batch_size), 1))
    return batches(crops, parts, workers=0 if crops.fits_in_cache(len(rows)) else min(workers, len(parts)))


def _moved(batch: Batch, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor | None]:
    labels = None if batch.labels is None else batch.labels.to(device)
    return batch.pixels.to(device), batch.samples.to(device), labels
