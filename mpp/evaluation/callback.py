"""Few-shot and nearest neighbours during pre-training: how the representation grows, by images of train alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mpp.data.label_subsets import dev_split, fraction_rows
from mpp.data.loader import CACHE_BYTES, EvaluationCrops
from mpp.data.sampler import Numbers
from mpp.data.settings import DataSettings
from mpp.data.table import ImageTable
from mpp.evaluation.features import EncoderReader, extract
from mpp.evaluation.few_shot import few_shot
from mpp.evaluation.knn import nearest_neighbours
from mpp.evaluation.settings import FeatureSettings, InTrainingSettings
from mpp.objective.base import Objective
from mpp.training.distributed import adopt_statistics
from mpp.training.state import Callback


def in_training(
    settings: InTrainingSettings, accelerator: Accelerator, images: ImageTable, data: DataSettings, *, every: int
) -> Callback:
    """A callback that yields `evaluation/…`: accuracies of the last block's class token and mean of patches.

    Images and their division into known and asked are the same at every step and in every run on the same data.

    Raises:
        SettingError: if the images have no labels, or too few for what is asked.
    """
    rows, known, asked = divided(settings, images)
    crops = EvaluationCrops(images, data, cache_bytes=CACHE_BYTES)

    def call(step: int, objective: Objective) -> Iterable[tuple[str, Any]]:
        encoder = objective.encoder
        adopt_statistics(accelerator, objective)
        reader = EncoderReader(encoder)
        layers = reader.layers(FeatureSettings(blocks="last", pools=("token", "avg")))
        was_training = objective.training
        objective.eval()
        workers = 0 if crops.fits_in_cache(len(rows)) else data.workers
        features = extract(reader, crops, rows, layers, accelerator, batch_size=256, workers=workers)
        objective.train(was_training)
        if features is None:
            return  # the main process scores, and writes the journal
        train, test = features.take(known), features.take(asked)
        for layer in layers:
            if not torch.isfinite(features.values[layer]).all():
                continue  # the loop has its own word on weights that have gone astray
            given = (train.values[layer], train.labels, test.values[layer], test.labels)
            if "few_shot" in settings.evaluators:
                for shots, score in few_shot(*given, shots=settings.shots).items():
                    yield f"evaluation/few_shot_{shots}_{layer.pool}", score.mean
            if "knn" in settings.evaluators:
                for k, accuracy in nearest_neighbours(*given, k=settings.k).items():
                    yield f"evaluation/knn_{k}_{layer.pool}", accuracy

    return Callback(every, call)


def divided(settings: InTrainingSettings, images: ImageTable) -> tuple[Numbers, Numbers, Numbers]:
    """The rows that are evaluated, and which of these are known and which are asked for.

    Raises:
        SettingError: if the images have no labels, or too few for what is asked.
    """
    if images.labels is None:
        raise settings.error(evaluators=f"labels are needed, and {images.name} has none")
    rows = fraction_rows(images.labels, min(settings.images / len(images), 1.0), seed=0)
    known, asked = dev_split(images.labels[rows], settings.dev, seed=0)
    _check(settings, images.labels[rows][known])
    return rows, known, asked


def _check(settings: InTrainingSettings, labels: Any) -> None:
    """Refuse before training what could not be measured.

    Raises:
        SettingError: with both numbers.
    """
    if len(np.unique(labels)) < 2:
        message = "all training images are of one class; there is nothing to tell apart"
        raise settings.error(evaluators=message)
    fewest = min(int((labels == label).sum()) for label in range(int(labels.max()) + 1))
    if "few_shot" in settings.evaluators and fewest < max(settings.shots):
        message = f"{max(settings.shots)} are more than the {fewest} images that a class has among evaluation.images"
        raise settings.error(shots=f"{message}; ask for fewer, or allow more images")
    if "knn" in settings.evaluators and len(labels) < max(settings.k):
        message = f"{max(settings.k)} is more than the {len(labels)} images to choose from"
        raise settings.error(k=message)
