"""Few-shot and nearest neighbours during pre-training, on images of train alone."""

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
from mpp.evaluation.evaluators import ONE_CLASS, check_counts
from mpp.evaluation.features import EncoderReader, extract
from mpp.evaluation.few_shot import few_shot
from mpp.evaluation.knn import nearest_neighbours
from mpp.evaluation.settings import FeatureSettings, InTrainingSettings
from mpp.objective.base import Objective
from mpp.training.state import Callback


def in_training(
    settings: InTrainingSettings, accelerator: Accelerator, images: ImageTable, data: DataSettings, *, every: int
) -> Callback:
    """A callback that yields `evaluation/…`: accuracies of the last block's class token and mean of patches.

    The rows, and which of them are predicted, are the same at every step and in every run on the same data.
    """
    rows, known, asked = divided(settings, images)
    crops = EvaluationCrops(images, data, cache_bytes=CACHE_BYTES)

    def call(step: int, objective: Objective) -> Iterable[tuple[str, Any]]:
        reader = EncoderReader(objective.encoder)
        layers = reader.layers(FeatureSettings(blocks="last", pools=("token", "avg")))
        workers = 0 if crops.fits_in_cache(len(rows)) else data.workers
        features = extract(reader, crops, rows, layers, accelerator, batch_size=256, workers=workers)
        if features is None:
            return  # only the main process evaluates and logs
        train, test = features.take(known), features.take(asked)
        for layer in layers:
            if not torch.isfinite(features.values[layer]).all():
                continue  # the trainer reports weights that are not finite
            given = (train.values[layer], train.labels, test.values[layer], test.labels)
            if "few_shot" in settings.evaluators:
                for shots, score in few_shot(*given, shots=settings.shots).items():
                    yield f"evaluation/few_shot_{shots}_{layer.pool}", score.mean
            if "knn" in settings.evaluators:
                for k, accuracy in nearest_neighbours(*given, k=settings.k).items():
                    yield f"evaluation/knn_{k}_{layer.pool}", accuracy

    return Callback(every, call)


def divided(settings: InTrainingSettings, images: ImageTable) -> tuple[Numbers, Numbers, Numbers]:
    """The rows that are evaluated, and of these the ones to fit on and the ones to predict.

    A SettingError if the images have no labels, or are too few, with both numbers.
    """
    if images.labels is None:
        raise settings.error(evaluators=f"labels are needed, and {images.name} has none")
    rows = fraction_rows(images.labels, min(settings.images / len(images), 1.0), seed=0)
    known, asked = dev_split(images.labels[rows], settings.dev, seed=0)
    labels = images.labels[rows][known]
    if len(np.unique(labels)) < 2:
        raise settings.error(evaluators=ONE_CLASS)
    shots = settings.shots if "few_shot" in settings.evaluators else ()
    k = settings.k if "knn" in settings.evaluators else ()
    check_counts(settings, labels, shots=shots, k=k, among=" among evaluation.images to fit on")
    return rows, known, asked
