"""From the bytes of an image file to upright RGB pixels."""

from __future__ import annotations

import ctypes
import io
import os
import platform
import struct
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from mpp.data.settings import DataSettings

JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG"
BITS_PER_SAMPLE = 258
"""A tag of TIFF."""
JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start of frame: its segment holds the height and width."""
JPEG_BARE_MARKERS = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})
"""Markers without a segment."""
MAX_PIXELS = 2**27
"""Larger images are not decoded by default."""


class DamagedImageError(ValueError):
    """An image file that cannot be decoded."""


def decode(encoded: bytes, max_pixels: int = MAX_PIXELS, *, background: str | None = "white", bits: int = 16) -> Tensor:
    """Decode a file of any mode and depth: uint8 `(3, h, w)`, RGB, turned upright as EXIF says.

    Grey and RGB JPEG files are decoded by libjpeg directly, several times faster than by PIL.

    Args:
        encoded: the file.
        max_pixels: larger images are refused.
        background: the colour behind transparent pixels; None ignores transparency.
        bits: that the values of 16-bit images use; the highest 8 of them are kept.

    Raises:
        DamagedImageError: if the bytes are no image, only part of one, or one whose header declares too many pixels.
    """
    if encoded.startswith(JPEG):
        if size := _jpeg_size(encoded):
            _check_size(*size, max_pixels)
        try:
            data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
            with _silent_c_libraries:
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
            if bits < 16 and encoded.startswith(PNG) and encoded[24] == 16:  # of colours PIL keeps the highest byte
                return from_pil(_png_of_16_bits(encoded, bits, image.getexif()), background=background)
            if bits < 16 and has_16_bit_colours(image):
                raise DamagedImageError(
                    f"it has 16-bit colours, of which only the highest 8 bits can be read from a {image.format}; with "
                    f"data.bits={bits} save it as PNG"
                )
            return from_pil(image, background=background, bits=bits)
    except DamagedImageError:
        raise
    except Exception as error:  # PIL's readers raise nearly anything on damaged bytes
        raise DamagedImageError(str(error).split(" <_io")[0] or type(error).__name__) from error


def decoder(settings: DataSettings) -> Callable[[bytes], Tensor]:
    """`decode` by the settings of a recipe."""
    return partial(decode, max_pixels=settings.max_pixels, background=settings.background, bits=settings.bits)


def from_pil(image: Image.Image, *, background: str | None = "white", bits: int = 16) -> Tensor:
    """uint8 `(3, h, w)` of an opened image, as `decode` gives it."""
    upright = _upright(image)
    if upright.mode.startswith(("I", "F")):  # of which PIL would clip all but 0…255
        upright = Image.fromarray(_to_8_bits(np.asarray(upright), bits))
    elif background is not None and upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, background)
        upright = Image.alpha_composite(opaque, upright.convert("RGBA"))
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).contiguous()


def _png_of_16_bits(encoded: bytes, bits: int, exif: Image.Exif) -> Image.Image:
    """A PNG file of 16 bits a channel, of 8 bits. Transparency uses all 16 bits."""
    data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    values = decode_png(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    opaque = values.shape[-1] in (1, 3)
    colours = [_to_8_bits(values if opaque else values[..., :-1], bits)]
    channels = np.concatenate(colours if opaque else [*colours, _to_8_bits(values[..., -1:], 16)], axis=-1)
    image = Image.fromarray(channels.squeeze(-1) if channels.shape[-1] == 1 else channels)
    image.getexif().update(exif)
    return image


def has_16_bit_colours(image: Image.Image) -> bool:
    """Whether an opened PNG or TIFF has several channels of 16 bits, of which PIL reads the highest 8."""
    if image.mode.startswith("I"):  # grey
        return False
    if isinstance(image, TiffImageFile):
        return 16 in image.tag_v2.get(BITS_PER_SAMPLE, ())
    return image.format == "PNG" and any("16B" in str(tile.args) for tile in getattr(image, "tile", ()))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        found = f"its header declares {width:,} × {height:,} pixels"
        raise DamagedImageError(f"{found}, more than the {max_pixels:,} that data.max_pixels allows")


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG file, if any. Walks the markers as libjpeg does."""
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


class _SilentCLibraries:
    """Discards what C libraries print to stderr: libjpeg's warnings of damaged files would cut the progress bar.

    Only C's own `stderr` variable is changed, not the file descriptor: other threads of Python still write to it.
    """

    def __init__(self) -> None:
        self.lock, self.threads = threading.Lock(), 0
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        self.stderr = ctypes.c_void_p.in_dll(libc, "stderr")
        self.original, self.discard = self.stderr.value, libc.fopen(os.devnull.encode(), b"w")

    def __enter__(self) -> None:
        with self.lock:
            self.threads += 1
            self.stderr.value = self.discard

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.threads -= 1
            if not self.threads:
                self.stderr.value = self.original


# Other C libraries have no variable of this name.
_silent_c_libraries = _SilentCLibraries() if platform.libc_ver()[0] == "glibc" else nullcontext()


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; unchanged where EXIF cannot be read, which does no harm to the pixels."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_8_bits(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Values of 16 or 32 bits, or floats, as 8 bits: the highest 8 of the `bits` that 16-bit values use.

    32-bit integers and floats are read as 16-bit values where one is above 255, and floats in [0, 1] as shares of
    white. Values above 2^bits − 1 are white.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        values = np.rint(values * 255 if values.max() <= 1 else values)
    if values.dtype.itemsize == 2 or values.max() > 255:
        values = values.astype(np.int64) >> (bits - 8)
    return values.clip(0, 255).astype(np.uint8)
