"""Checks of features and labels, common to all evaluators."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Labelled(NamedTuple):
    """Checked features `(N, D)` and `(M, D)`, and their labels int64 `(N,)` and `(M,)`, all on one device."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def checked(
    train_features: Any, train_labels: Any, test_features: Any, test_labels: Any, dtype: torch.dtype
) -> Labelled:
    """Arrays or tensors as tensors of `dtype` on the device of `train_features` (arrays: on the CPU).

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, a single class, or labels out of range.
    """
    device = train_features.device if isinstance(train_features, Tensor) else torch.device("cpu")
    if device.type == "mps" and dtype == torch.float64:  # Apple's GPUs do not have it
        device = torch.device("cpu")
    train = _features(train_features, "train", device, dtype)
    test = _features(test_features, "test", device, dtype)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"features have {train.shape[1]} dimensions in train and {test.shape[1]} in test")
    known = _labels(train_labels, len(train), "train", device)
    asked = _labels(test_labels, len(test), "test", device)
    classes = int(known.max()) + 1
    if bool((known == known[0]).all()):
        raise ValueError("all train labels are of one class: there is nothing to classify")
    if int(asked.max()) >= classes:
        raise ValueError(f"test labels reach {int(asked.max())}, but train has only the classes 0…{classes - 1}")
    return Labelled(train, known, test, asked, classes)


def _tensor(values: Any) -> Tensor:
    """A tensor of tensors or arrays: views, read-only memory, any byte order and width."""
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise ValueError("features and labels must not have masked values")
    if isinstance(values, Tensor):
        if values.is_complex():
            raise ValueError(f"features and labels must be real numbers, found {values.dtype}")
        return values.detach()
    if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
        return torch.stack([value.detach() for value in values])
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"features and labels must be numbers, found {array.dtype}")
    width = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float64}[array.dtype.kind]
    return torch.from_numpy(np.array(array, dtype=width, order="C"))  # a copy: torch warns of read-only memory


def _features(values: Any, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    features = _tensor(values).to(device, dtype)
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name} features must have the shape (rows, dimensions), found {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        rows = (~torch.isfinite(features)).any(1).sum()
        raise ValueError(
            f"{rows} of {len(features)} {name} features are not finite (NaN or infinite): the encoder has broken "
            "weights, or needs float32"
        )
    if features.abs().max() > torch.finfo(dtype).max ** 0.4:  # sums of squares are finite below
        raise ValueError(f"{name} features reach {features.abs().max():.0e}: too large to be squared, scale them down")
    return features


def _labels(values: Any, rows: int, name: str, device: torch.device) -> Tensor:
    labels = _tensor(values).to(device)
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"{name} labels must be integers, found {labels.dtype}")
    if tuple(labels.shape) != (rows,):
        raise ValueError(f"{rows} {name} features need as many labels, found the shape {tuple(labels.shape)}")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise ValueError(f"{name} labels must be 0 or more, found {int(labels.min())}")
    return labels
