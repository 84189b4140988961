"""JPEG files: what their header says, and only the rows of pixels that a crop needs.

libjpeg decodes from the top. A file whose header declares fewer rows is decoded that far, and its remaining bytes are
skipped: much faster, and with the same pixels, but for the last rows of chroma, which are interpolated with the next.
"""

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
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpp.data.crops import Crop


def _decoder() -> Callable[[Tensor], Any]:
    """torchcodec's, the successor of torchvision's with the same bits, where it is installed for this torch."""
    try:
        from torchcodec.decoders import decode_jpeg  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]
    except Exception:
        from torchvision.io import ImageReadMode, decode_jpeg

        return partial(decode_jpeg, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return partial(decode_jpeg, mode="UNCHANGED")


_decode_jpeg = _decoder()

JPEG = b"\xff\xd8\xff"
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers whose segment holds the height and width."""
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
START_OF_SCAN, APP1 = 0xDA, 0xE1
BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})
"""Markers without a segment."""
ORIENTATION, TIFF_FIELD = 0x0112, 12
"""A tag of EXIF, and the bytes of each."""
TRANSPOSED, FROM_THE_END = (5, 6, 7, 8), (3, 4, 6, 7)
"""EXIF orientations whose stored rows are upright columns; whose first stored row is the last upright row or column."""
FLIPS = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}
"""Upright axes that are flipped, after the transposition."""
SMOOTHED = 3
"""Block rows that libjpeg looks at beyond the last one, in progressive files that are not complete."""
SCALES = (8, 4, 2)
"""Reductions that libjpeg is fast at."""


class Header(NamedTuple):
    """What the header of a JPEG file says."""

    height: int
    width: int
    """As stored, before EXIF turns the image upright."""
    height_at: int
    """The position of the height in the file."""
    orientation: int
    """Of EXIF, 1 to 8; 0 if it is not clear."""
    margin: int
    """Rows of pixels below a crop that its last rows are interpolated with; 0 if it is not known."""

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if self.orientation in TRANSPOSED else (self.height, self.width)

    @property
    def in_parts(self) -> bool:
        """Whether all of it is known, so that the first rows can be decoded alone."""
        return min(self) > 0


def read_header(encoded: bytes) -> Header | None:
    """The header of a JPEG file up to its first scan, if it has a size. Walks the markers as libjpeg does."""
    at, frame, exif = 2, None, None
    while (at := encoded.find(b"\xff", at)) >= 0:
        while encoded[at : at + 1] == b"\xff":
            at += 1
        marker = int.from_bytes(encoded[at : at + 1])
        at += 1
        if marker in BARE:
            continue
        if marker == START_OF_SCAN:
            break
        length = max(int.from_bytes(encoded[at : at + 2]), 2)
        if marker in START_OF_FRAME and frame is None and len(encoded) >= at + 7:
            frame = marker, at, encoded[at : at + length]
        elif marker == APP1 and exif is None:
            exif = encoded[at + 2 : at + length]
        at += length
    if frame is None:
        return None
    marker, at, segment = frame
    _, _, height, width = struct.unpack(">HBHH", segment[:7].ljust(7, b"\0"))
    return Header(height, width, at + 3, _orientation(exif), _margin(marker, segment))


def _margin(marker: int, segment: bytes) -> int:
    components = segment[8:][: 3 * segment[7]] if len(segment) > 7 else b""
    if marker not in (BASELINE, EXTENDED, PROGRESSIVE) or len(components) not in (3, 9):
        return 0
    sampling = max(byte & 15 for byte in components[1::3])
    return 2 * sampling + (8 * SMOOTHED * sampling if marker == PROGRESSIVE else 0)


def _orientation(exif: bytes | None) -> int:
    """EXIF's orientation by the first segment that may hold it; 0 where the readers of damaged EXIF may differ."""
    tiff = (exif or b"")[6:]
    if exif is None or tiff[2:4] not in (b"*\0", b"\0*"):
        return 1
    if not exif.startswith((b"Exif\0\0II*\0", b"Exif\0\0MM\0*")):
        return 0
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (fields,) = struct.unpack_from(f"{order}H", tiff, at)
        for start in range(at + 2, at + 2 + TIFF_FIELD * fields, TIFF_FIELD):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, start)
            if tag == 0xFFFF:
                return 0
            if tag == ORIENTATION:
                return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 0
    except struct.error:
        return 0
    return 1


def scale_for(crop: Crop, least: int) -> int:
    """The largest reduction that leaves so many pixels on both sides of a crop."""
    return next((scale for scale in SCALES if min(crop.height, crop.width) // scale >= least), 1)


def decode_whole(encoded: bytes) -> Tensor | None:
    """uint8 `(3, h, w)`, upright; None if libjpeg cannot decode the file, or it is neither grey nor RGB."""
    return _decoded(bytearray(encoded))


def decode_part(encoded: bytes, header: Header, crop: Crop, scale: int = 1) -> tuple[Tensor, Crop] | None:
    """Decode the rows that a crop needs: the first rows of the file as it is stored.

    Args:
        encoded: the file.
        header: of the file, which can be decoded in parts.
        crop: of the upright image.
        scale: 1, or one of `SCALES`, by which libjpeg reduces the image.

    Returns:
        Upright pixels, uint8 `(3, h, w)`, and the crop in them; None if they cannot be decoded.
    """
    height, width = (-(-side // scale) for side in header.upright)
    crop = _reduced(crop, header, scale)
    across = header.orientation in TRANSPOSED  # stored rows are upright columns
    first, size, extent = (crop.left, crop.width, width) if across else (crop.top, crop.height, height)
    last = extent - first if header.orientation in FROM_THE_END else first + size
    rows = header.height  # libjpeg warns of bytes that it skips: they are decoded where it cannot be silenced
    if silent or scale > 1:
        rows = min((last + header.margin) * scale, header.height)
    data = bytearray(encoded)
    struct.pack_into(">H", data, header.height_at, rows)
    pixels = _decoded(data) if scale == 1 else _reduced_by_libjpeg(data, header, rows, scale)
    if pixels is None:
        return None
    if header.orientation in FROM_THE_END:
        missing = extent - pixels.shape[2 if across else 1]
        crop = crop._replace(left=crop.left - missing) if across else crop._replace(top=crop.top - missing)
    return pixels, crop


def _reduced(crop: Crop, header: Header, scale: int) -> Crop:
    """A crop in the reduced image, rounded to whole pixels: its sides are at least those of the crop, rounded down."""
    if scale == 1:
        return crop

    def reduced(first: int, size: int, axis: int) -> tuple[int, int]:
        extent = header.upright[axis]
        edges = first, first + size
        if axis in FLIPS.get(header.orientation, ()):  # libjpeg's grid starts at the last upright row or column
            last, first = ((extent - edge + scale // 2) // scale for edge in edges)
            return -(-extent // scale) - last, last - first
        first, last = ((edge + scale // 2) // scale for edge in edges)
        return first, last - first

    (top, height), (left, width) = reduced(crop.top, crop.height, -2), reduced(crop.left, crop.width, -1)
    return Crop(top, left, height, width, crop.flip)


def _decoded(data: bytearray) -> Tensor | None:
    file = torch.frombuffer(data, dtype=torch.uint8)
    try:
        with _silent_c_libraries:
            pixels = _decode_jpeg(file)
    except RuntimeError:
        return None
    return pixels.expand(3, -1, -1) if pixels.shape[0] in (1, 3) else None


def _reduced_by_libjpeg(data: bytearray, header: Header, rows: int, scale: int) -> Tensor | None:
    """The same at a smaller scale, which the decoders of torch do not offer."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (header.width // scale, rows // scale))  # pyright: ignore[reportArgumentType]
            if image.size != (-(-header.width // scale), -(-rows // scale)) or image.mode not in ("L", "RGB"):
                return None
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Exception:  # PIL's readers raise nearly anything on damaged bytes
        return None
    pixels = pixels.transpose(1, 2) if header.orientation in TRANSPOSED else pixels
    return pixels.flip(FLIPS[header.orientation]) if header.orientation in FLIPS else pixels


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


silent = platform.libc_ver()[0] == "glibc"
"""Whether C libraries can be silenced: others have no variable of this name."""
_silent_c_libraries = _SilentCLibraries() if silent else nullcontext()
