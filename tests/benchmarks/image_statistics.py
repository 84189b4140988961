"""Colours and spectra of data sets, side by side: `python -m tests.benchmarks.image_statistics SOURCE:SIZE …`.

Entropy: nats of the 3-bit mean colours of the 4 × 4 patches of the images at 32 × 32, what the histogram baseline
can know. Slope: of log power of the luminance against log frequency at SIZE × SIZE; photographs lie near −2 to −3.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from mpp.data.loader import EvaluationCrops
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
from mpp.objective.patches import colour_classes, patchify
from mpp.training.validation import random_rows

IMAGES = 2000


def pixels(source: str, size: int) -> torch.Tensor:
    """uint8 `(2000, 3, size, size)` of the training split."""
    settings = DataSettings(source=source, image_size=size)
    crops = EvaluationCrops(open_splits(settings, 0).train, settings)
    return crops[random_rows(crops, IMAGES, 0)].pixels


def entropy(images: torch.Tensor) -> float:
    """Of uint8 `(n, 3, 32, 32)`."""
    counts = torch.bincount(colour_classes(patchify(images, 4), 1, 3).flatten(), minlength=512).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


def slope(images: torch.Tensor) -> float:
    """Of uint8 `(n, 3, s, s)`."""
    size = images.shape[-1]
    light = np.einsum("ncij,c->nij", images.numpy().astype(np.float64), [0.299, 0.587, 0.114])
    window = np.hanning(size)[:, None] * np.hanning(size)
    power = (np.abs(np.fft.fft2((light - light.mean((1, 2), keepdims=True)) * window)) ** 2).mean(0)
    frequency = np.fft.fftfreq(size) * size
    radius = np.rint(np.hypot(frequency[:, None], frequency))
    rings = np.arange(2, size // 2)
    means = [power[radius == ring].mean() for ring in rings]
    return float(np.polyfit(np.log(rings), np.log(means), 1)[0])


def main() -> None:
    print(f"{'source':40} {'entropy':>8} {'slope':>8}")
    for argument in sys.argv[1:]:
        source, _, size = argument.rpartition(":")
        print(f"{source:40} {entropy(pixels(source, 32)):8.2f} {slope(pixels(source, int(size))):8.2f}", flush=True)


if __name__ == "__main__":
    main()
