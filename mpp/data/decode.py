"""From the bytes of an image file to upright RGB pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

JPEG = b"\xff\xd8\xff"


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
