"""From the bytes of an image file to upright RGB pixels."""

from __future__ import annotations

import ctypes
import io
import os
import platform
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

JPEG = b"\xff\xd8\xff"
JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start of frame: its segment holds the height and width."""
JPEG_BARE_MARKERS = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})
"""Markers without a segment."""
MAX_PIXELS = 2**27
"""By default, larger images are not decoded."""


class DamagedImageError(ValueError):
    """An image file that cannot be decoded."""


def decode(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """uint8 `(3, h, w)`: RGB, turned upright as EXIF says, whatever the file's own mode and depth.

    JPEG files are decoded by libjpeg directly, several times faster than PIL. PIL decodes all other files, and JPEG
    files that are neither grey nor RGB.

    Args:
        encoded: the content of the file.
        max_pixels: the largest image to decode. The size is read from the file's header, before anything is decoded.

    Raises:
        DamagedImageError: if the bytes are no image, only part of one, or one that is too large.
    """
    if encoded.startswith(JPEG):
        if size := _jpeg_size(encoded):
            _check_size(*size, max_pixels)
        try:
            data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
            with _silent_c_libraries():
                pixels = decode_jpeg(data, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
        except RuntimeError:
            pixels = None  # PIL tries too, and has the better message
        if isinstance(pixels, Tensor) and pixels.shape[0] in (1, 3):
            return pixels.expand(3, -1, -1)
    try:
        if Image.MAX_IMAGE_PIXELS is not None:  # PIL's own limit must not be below the setting
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
        with Image.open(io.BytesIO(encoded)) as image:
            _check_size(*image.size, max_pixels)
            return from_pil(image)
    except DamagedImageError:
        raise
    except Exception as error:  # PIL's readers raise nearly anything on damaged bytes
        raise DamagedImageError(str(error).split(" <_io")[0] or type(error).__name__) from error


def from_pil(image: Image.Image) -> Tensor:
    """uint8 `(3, h, w)` of an opened image, as `decode` gives it."""
    upright = _upright(image)
    if upright.mode.startswith(("I", "F")):  # of which PIL would clip all but 0…255
        upright = Image.fromarray(_to_8_bits(np.asarray(upright)))
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).contiguous()


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DamagedImageError(
            f"its header declares {width:,} × {height:,} pixels, more than the {max_pixels:,} that data.max_pixels "
            "allows"
        )


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG file, or None if there are none. Walks the markers as libjpeg does."""
    at = 2
    while (at := encoded.find(b"\xff", at)) >= 0:
        while encoded[at : at + 1] == b"\xff":
            at += 1
        marker = int.from_bytes(encoded[at : at + 1])
        at += 1
        if marker in JPEG_BARE_MARKERS:
            continue
        segment = encoded[at : at + 7]
        if marker in JPEG_SIZE_MARKERS and len(segment) == 7:
            _, _, height, width = struct.unpack(">HBHH", segment)
            return width, height
        at += max(int.from_bytes(segment[:2]), 2)
    return None


_silence_lock = threading.Lock()
_silent_threads = 0


@contextmanager
def _silent_c_libraries() -> Iterator[None]:
    """Discard what C libraries print to stderr: libjpeg's warnings of damaged files would cut the progress bar.

    Only C's own `stderr` variable is changed, not the file descriptor: other threads of Python still write to it.
    """
    global _silent_threads
    if _C_STDERR is None:
        yield
        return
    with _silence_lock:
        _silent_threads += 1
        _C_STDERR.value = _DEVNULL
    try:
        yield
    finally:
        with _silence_lock:
            _silent_threads -= 1
            if not _silent_threads:
                _C_STDERR.value = _ORIGINAL


def _c_stderr() -> tuple[Any, int | None, int | None]:
    """C's `stderr` variable, its value, and a stream that discards everything; None where the variable is unknown."""
    if platform.libc_ver()[0] != "glibc":
        return None, None, None
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    variable = ctypes.c_void_p.in_dll(libc, "stderr")
    return variable, variable.value, libc.fopen(os.devnull.encode(), b"w")


_C_STDERR, _ORIGINAL, _DEVNULL = _c_stderr()


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
