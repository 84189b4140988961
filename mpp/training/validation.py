"""The loss on held-out images, with fixed crops and corruptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mpp import randomness
from mpp.data.loader import EvaluationCrops
from mpp.data.order import Numbers
from mpp.objective import scores as sums
from mpp.training.loop import Callback


def chosen_rows(crops: EvaluationCrops, images: int, seed: int) -> Numbers:
    """Which rows of a split are looked at: a seeded choice, since many data sets are sorted by class."""
    order = randomness.permutation(randomness.key(seed, "evaluation"), 0, len(crops.images))
    return order[:images]


def validation(
    accelerator: Accelerator,
    crops: EvaluationCrops,
    rows: Numbers,
    *,
    batch_size: int,
    baselines: dict[str, float],
    every: int,
) -> Callback:
    """A callback that yields `validation/…`: what the objective scores on some rows, and the baselines beside it.

    The rows are divided among the processes; their corruption is decided by the row number alone.
    """

    def call(step: int, objective: nn.Module) -> Iterable[tuple[str, float]]:
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        totals: sums.Scores = {}
        was_training = objective.training
        objective.eval()
        for pixels, samples, labels in on_device(crops, mine, batch_size, accelerator.device):
            with torch.no_grad(), accelerator.autocast():
                prediction = objective.forward(pixels, samples, labels)
                totals = sums.add(totals, objective.scores(prediction, pixels))  # pyright: ignore
        objective.train(was_training)
        if accelerator.num_processes > 1:
            names, values = zip(*totals.items(), strict=True)
            reduced = accelerator.reduce(torch.stack(values), "sum")
            totals = dict(zip(names, reduced, strict=True))
        means = objective.summary(sums.means(totals))  # pyright: ignore[reportCallIssue]
        yield from ((f"validation/{name}", value) for name, value in (means | baselines).items())

    return Callback(every, call)


def on_device(
    crops: EvaluationCrops, rows: Numbers, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches of evaluation crops: uint8 pixels `(b, 3, h, w)`, int64 row numbers `(b,)`, labels or None."""
    for part in np.array_split(rows, max(-(-len(rows) // batch_size), 1)):
        batch = crops[part]
        labels = None if batch.labels is None else batch.labels.to(device)
        yield batch.pixels.to(device), batch.samples.to(device), labels
