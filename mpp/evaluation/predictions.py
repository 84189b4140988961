"""The predicted class of every test image: what intervals are made of, in `predictions.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpp.data.loader import Batch
from mpp.files import replacing

FILE = "predictions.safetensors"
LABELS = "labels"
"""The name of the labels of the test images among the predictions, `(M,)`."""
Predictions = dict[str, Tensor]
"""The predicted class of each test image, `(M,)`, or of each draw of shots and image, `(draws, M)`, by `key_of`."""


def key_of(evaluator: str, setting: float | None = None, layer: str | None = None) -> str:
    """The name of predictions in the file: `few_shot/25/chosen`, `linear_probe/default`, `finetune/0.1`."""
    return "/".join(filter(None, (evaluator, None if setting is None else f"{setting:g}", layer)))


def compact(classes: Tensor, num_classes: int) -> Tensor:
    """Class numbers on the CPU, in the smallest integer type that holds them all."""
    return classes.cpu().to(torch.uint8 if num_classes <= 256 else torch.int32).contiguous()


class Classified:
    """The classes that a classifier predicts while it is tested, over all processes."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def add(self, batch: Batch, prediction: Any) -> None:
        """Remember the likeliest classes of a batch, by the rows of its images."""
        self._batches.append(torch.stack([batch.samples.cpu(), prediction.logits.argmax(-1).cpu()]))

    def of_all(self, images: int) -> Tensor:
        """The classes of all test images, in their order: int64 `(images,)`; all processes have to call this."""
        rows, classes = torch.cat(gather_object(self._batches), dim=1)
        return torch.zeros(images, dtype=torch.int64).index_copy(0, rows, classes)


def write_predictions(path: Path, predictions: Predictions, labels: Tensor) -> None:
    """Write predictions and the labels of the test images, int64 `(M,)`."""
    with replacing(path) as draft:
        save_file({**predictions, LABELS: compact(labels, int(labels.max()) + 1)}, draft)


def read_predictions(path: Path) -> Predictions:
    """The predictions in a file, with the labels; nothing if there is no file."""
    return load_file(path) if path.is_file() else {}


def correctness(predictions: Mapping[str, Tensor], key: str) -> NDArray[np.float64] | None:
    """For each test image the share of draws whose prediction is right: `(M,)`; None if there is no such prediction.

    Where an evaluator chose its default layer, the predictions are stored once, as those of the default.
    """
    found = predictions.get(key, predictions.get(key.removesuffix("/chosen") + "/default"))
    if found is None:
        return None
    right = (found == predictions[LABELS]).double()
    return (right if right.ndim == 1 else right.mean(0)).numpy()
