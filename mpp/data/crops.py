"""Random crops for training, centre crops for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mpp import randomness
from mpp.data.settings import DataSettings

ATTEMPTS = 10
WORDS_PER_CROP = ATTEMPTS + 1
"""Draws of four words each for a crop: one for each attempt, and one for the flip."""
MAX_ASPECT_RATIO = 8
"""Longer images lose their ends before their centre is resized."""


class Crop(NamedTuple):
    """A rectangle of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


Choose = Callable[[int, int], Crop]
"""A crop by the height and width of an image."""


def whole(height: int, width: int) -> Crop:
    """All of an image."""
    return Crop(0, 0, height, width, flip=False)


def random_crop(words: np.ndarray[Any, Any], height: int, width: int, settings: DataSettings) -> Crop:
    """The 'inception crop' and flip (Szegedy et al. 2015) by random words, int64 `(WORDS_PER_CROP, 4)` in [0, 2**32).

    Area uniform in `crop_scale`, log of the aspect ratio uniform in `crop_ratio`; where no attempt fits, the
    largest centre crop within the ratios.
    """
    (low, high), (narrow, wide) = settings.crop_scale, settings.crop_ratio
    flip = words[ATTEMPTS, 0] < settings.flip * 2**32
    for area, ratio, top, left in words[:ATTEMPTS].tolist():
        covered = height * width * (low + (high - low) * area / 2**32)
        aspect = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * ratio / 2**32)
        w, h = round(math.sqrt(covered * aspect)), round(math.sqrt(covered / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Crop(randomness.below(top, height - h + 1), randomness.below(left, width - w + 1), h, w, bool(flip))
    w = min(width, max(round(height * wide), 1))
    h = min(height, max(round(width / narrow), 1))
    return Crop((height - h) // 2, (width - w) // 2, h, w, bool(flip))


def cut(pixels: Tensor, crop: Crop, settings: DataSettings) -> Tensor:
    """Cut and resize a crop: uint8 `(3, h, w)` → uint8 `(3, image_size, image_size)`."""
    size = settings.image_size
    pixels = pixels[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) != (size, size):
        pixels = F.resize(pixels, [size, size], InterpolationMode(settings.interpolation), antialias=True)
    return pixels.flip(-1) if crop.flip else pixels


def shorter_side(settings: DataSettings) -> int:
    """To which an image's shorter side is resized in evaluation."""
    return max(round(settings.image_size / settings.crop_pct), settings.image_size)


def centre(pixels: Tensor, settings: DataSettings) -> Tensor:
    """The evaluation crop: the shorter side resized to image_size / crop_pct, then the centre square.

    uint8 `(3, h, w)` or `(b, 3, h, w)`, to squares of `image_size`.
    """
    size = settings.image_size
    shorter = shorter_side(settings)
    height, width = pixels.shape[-2:]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):  # else the ends are enlarged, only to be cut off
        pixels = F.center_crop(pixels, [min(height, MAX_ASPECT_RATIO * width), min(width, MAX_ASPECT_RATIO * height)])
    if min(pixels.shape[-2:]) != shorter:
        pixels = F.resize(pixels, [shorter], InterpolationMode(settings.interpolation), antialias=True)
    return pixels if pixels.shape[-2:] == (size, size) else F.center_crop(pixels, [size, size])
