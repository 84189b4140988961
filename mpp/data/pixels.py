"""From the bytes of an image file to upright RGB pixels, and from those to crops."""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mpp import randomness
from mpp.data.settings import DataSettings

JPEG = b"\xff\xd8\xff"
ATTEMPTS = 10
WORDS_PER_CROP = ATTEMPTS + 1
"""Draws (of four words each) behind a crop: one for each attempt, and one for the flip."""
LONGEST = 8
"""Images that are longer than this many times their shorter side lose their ends before their centre is resized."""


class Crop(NamedTuple):
    """A rectangle of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class DamagedImageError(ValueError):
    """An image file that cannot be decoded."""


def decode(encoded: bytes) -> Tensor:
    """uint8 `(3, h, w)`: RGB, turned upright as EXIF says, whatever the file's own mode and depth.

    JPEG goes through libjpeg directly, at several times PIL's rate; what is not plain there, and all else,
    goes through PIL.

    Raises:
        DamagedImageError: if the bytes are no image, or only part of one.
    """
    if encoded.startswith(JPEG):
        try:
            data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
            pixels = decode_jpeg(data, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
        except RuntimeError:
            pixels = None  # PIL has the last word, and the better message
        if isinstance(pixels, Tensor) and pixels.shape[0] in (1, 3):
            return pixels.expand(3, -1, -1)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            upright = _upright(image)
            if upright.mode.startswith(("I", "F")):  # of which PIL would clip all but 0…255
                upright = Image.fromarray(_to_8_bits(np.asarray(upright)))
            return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).contiguous()
    except Exception as error:  # PIL's readers raise nearly anything on damaged bytes
        raise DamagedImageError(str(error).split(" <_io")[0] or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; as it is where that cannot be read, which does no harm to the pixels."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_8_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Grey values of 16 or 32 bits, or floats, as 8 bits.

    Of 16 bits the highest byte is taken; 32-bit integers and floats are read as 16-bit values where one is above 255,
    and floats in [0, 1] as shares of white. What is above 65,535 is white.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        values = np.rint(values * 255 if values.max() <= 1 else values)
    if values.dtype.itemsize == 2 or values.max() > 255:
        values = values.astype(np.int64) >> 8
    return values.clip(0, 255).astype(np.uint8)


def random_crop(words: np.ndarray[Any, Any], height: int, width: int, settings: DataSettings) -> Crop:
    """The 'inception crop' and flip of an image, decided by random words (Szegedy et al. 2015).

    Area uniform in `crop_scale`, log of the aspect ratio uniform in `crop_ratio`; where no attempt fits, the
    largest centre crop within the ratios.

    Args:
        words: int64 `(WORDS_PER_CROP, 4)`, in [0, 2**32).
        height, width: of the image.
        settings: scale, ratio and flip.
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
    """uint8 `(3, h, w)` → the crop at the encoder's size, uint8 `(3, image_size, image_size)`."""
    size = settings.image_size
    pixels = pixels[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) != (size, size):
        pixels = F.resize(pixels, [size, size], _interpolation(settings), antialias=True)
    return pixels.flip(-1) if crop.flip else pixels


def centre(pixels: Tensor, settings: DataSettings) -> Tensor:
    """The evaluation crop: the shorter side resized to image_size / crop_pct, then the centre square."""
    size = settings.image_size
    shorter = max(round(size / settings.crop_pct), size)
    height, width = pixels.shape[1:]
    if max(height, width) > LONGEST * min(height, width):  # else the ends would be enlarged, only to be cut off
        pixels = F.center_crop(pixels, [min(height, LONGEST * width), min(width, LONGEST * height)])
    if min(pixels.shape[1:]) != shorter:
        pixels = F.resize(pixels, [shorter], _interpolation(settings), antialias=True)
    return F.center_crop(pixels, [size, size])


def _interpolation(settings: DataSettings) -> InterpolationMode:
    return InterpolationMode(settings.interpolation)
