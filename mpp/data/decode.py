"""From the bytes of an image file to upright RGB pixels."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from mpp.data import jpeg
from mpp.data.crops import Choose, Crop, shorter_side, whole
from mpp.data.settings import DataSettings

PNG = b"\x89PNG"
BITS_PER_SAMPLE = 258
"""A tag of TIFF."""
PPM = re.compile(rb"P6\n([1-9]\d{0,8}) ([1-9]\d{0,8})\n255\n")
"""The header of uncompressed colours of 8 bits, as `as_ppm` writes it."""
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
    if header := PPM.match(encoded):
        width, height = map(int, header.groups())
        _check_size(width, height, max_pixels)
        if len(encoded) >= header.end() + 3 * height * width:  # else PIL has the message
            return from_ppm(encoded, header.end(), height, width)
    if encoded.startswith(jpeg.JPEG):
        if frame := jpeg.read_header(encoded):
            _check_size(frame.width, frame.height, max_pixels)
        if (pixels := jpeg.decode_whole(encoded)) is not None:
            return pixels  # else PIL tries too, and has the better message
    _raise_limit_of_pil(max_pixels)
    try:
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


def decode_crop(
    encoded: bytes,
    choose: Choose,
    max_pixels: int = MAX_PIXELS,
    *,
    background: str | None = "white",
    bits: int = 16,
    least: int | None = None,
) -> tuple[Tensor, Crop]:
    """Decode as much of a file as a crop needs: pixels, and the crop in them.

    Args:
        encoded: the file.
        choose: the crop by the height and width of the upright image.
        max_pixels, background, bits: as in `decode`.
        least: JPEG files are reduced to 1/2, 1/4 or 1/8 while both sides of the crop have so many pixels; None reduces
            nothing, and the crop has the pixels that `decode` gives it, bit for bit.

    Raises:
        DamagedImageError: as `decode` does.
    """
    if encoded.startswith(jpeg.JPEG) and (header := jpeg.read_header(encoded)) is not None and header.in_parts:
        _check_size(header.width, header.height, max_pixels)
        crop = choose(*header.upright)
        scale = 1 if least is None else jpeg.scale_for(crop, least)
        if scale > 1:
            _raise_limit_of_pil(max_pixels)
        if (part := jpeg.decode_part(encoded, header, crop, scale)) is not None:
            return part
    pixels = decode(encoded, max_pixels, background=background, bits=bits)
    return pixels, choose(*pixels.shape[1:])


def crop_decoder(settings: DataSettings, least: int) -> Callable[[bytes, Choose], tuple[Tensor, Crop]]:
    """`decode_crop` by the settings of a recipe, for crops that are resized to `least` pixels."""
    return partial(
        decode_crop,
        max_pixels=settings.max_pixels,
        background=settings.background,
        bits=settings.bits,
        least=least if settings.decode == "scaled" else None,
    )


def decoder(settings: DataSettings) -> Callable[[bytes], Tensor]:
    """The upright image of which evaluation takes the centre, by the settings of a recipe."""
    decode = crop_decoder(settings, shorter_side(settings))
    return lambda encoded: decode(encoded, whole)[0]


def from_ppm(encoded: bytes, start: int, height: int, width: int) -> Tensor:
    """uint8 `(3, h, w)` of uncompressed colours."""
    values = torch.frombuffer(bytearray(encoded), dtype=torch.uint8, offset=start, count=3 * height * width)
    return values.view(height, width, 3).permute(2, 0, 1)


def as_ppm(pixels: np.ndarray[Any, Any]) -> bytes:
    """An uncompressed image file, which any reader of images opens: of uint8 `(h, w, 3)`."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def from_pil(image: Image.Image, *, background: str | None = "white", bits: int = 16) -> Tensor:
    """uint8 `(3, h, w)` of an opened image, as `decode` gives it."""
    upright = _upright(image)
    if upright.mode.startswith(("I", "F")):  # of which PIL would clip all but 0…255
        upright = Image.fromarray(_to_8_bits(np.asarray(upright), bits))
    elif background is not None and upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, background)
        upright = Image.alpha_composite(opaque, upright.convert("RGBA"))
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)


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


def _raise_limit_of_pil(max_pixels: int) -> None:
    """PIL's own limit must not be below the setting."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        found = f"its header declares {width:,} × {height:,} pixels"
        raise DamagedImageError(f"{found}, more than the {max_pixels:,} that data.max_pixels allows")


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
