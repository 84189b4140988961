"""Any picture comes out as upright RGB in 0…255, whatever its mode, depth and form; a cut one is damaged."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mpp.data.decode import DamagedImageError, decode
from tests.support.runs import encoded, picture


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_out_upright_whatever_exif_says(form: str, orientation: int):
    image = picture()
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), np.asarray(upright.convert("RGB")))


@pytest.mark.parametrize(
    ("form", "mode"),
    [(form, mode) for form, modes in {
        "PNG": ["L", "P", "1", "RGBA", "LA"], "JPEG": ["L", "CMYK", "YCbCr"], "TIFF": ["L", "P", "1", "RGBA", "CMYK"],
        "WEBP": ["RGB", "RGBA"], "GIF": ["L", "P"],
    }.items() for mode in modes],
)  # fmt: skip
def test_every_mode_comes_out_as_pil_s_rgb(form: str, mode: str):
    data = encoded(picture().convert(mode), form)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    pixels = decode(data)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_sixteen_bits_keep_their_upper_eight():
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pixels = decode(encoded(Image.fromarray(grey)))
    assert np.array_equal(pixels[0].numpy(), grey >> 8)
    assert torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [1, 255, 256, 4095, 65535])
def test_sixteen_bits_keep_their_upper_eight_however_dark_the_image(form: str, top: int):
    grey = np.random.default_rng(top).integers(0, top + 1, (9, 13)).astype(np.uint16)
    grey[4, 5] = top
    pixels = decode(encoded(Image.fromarray(grey), form))
    assert np.array_equal(pixels.numpy(), np.stack([grey >> 8] * 3))


@pytest.mark.parametrize("top", [0, 1, 100, 255])
def test_grey_of_32_bits_is_taken_as_it_is_where_8_hold_it(top: int):
    grey = np.random.default_rng(top).integers(0, top + 1, (9, 13)).astype(np.int32)
    grey[4, 5] = top
    image = Image.fromarray(grey)
    assert image.mode == "I"
    pixels = decode(encoded(image, "TIFF"))
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), np.stack([grey] * 3))


def test_grey_of_32_bits_with_values_of_16_keeps_their_upper_eight():
    grey = np.arange(0, 65536, 257, dtype=np.int32).reshape(16, 16)
    assert np.array_equal(decode(encoded(Image.fromarray(grey), "TIFF"))[0].numpy(), grey >> 8)


@pytest.mark.parametrize("scale", [1, 255], ids=["0…255", "[0, 1]"])
@pytest.mark.parametrize("top", [255, 200, 3])
def test_grey_in_floats_comes_out_right_in_both_ranges(scale: int, top: int):
    grey = np.random.default_rng(top).integers(0, top + 1, (9, 13))
    grey[4, 5] = top
    image = Image.fromarray((grey / scale).astype(np.float32))
    assert image.mode == "F"
    pixels = decode(encoded(image, "TIFF"))
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), np.stack([grey] * 3))


@pytest.mark.parametrize(("scale", "unit"), [(255, 1), (1, 255)], ids=["0…255", "[0, 1]"])
def test_floats_between_two_grey_values_come_out_as_one_of_them(scale: float, unit: float):
    values = np.random.default_rng(0).random((40, 40), dtype=np.float32) * np.float32(scale)
    pixels = decode(encoded(Image.fromarray(values), "TIFF"))[0].numpy()
    assert np.abs(pixels - values.astype(np.float64) * unit).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_file_cut_anywhere_is_damaged(form: str):
    data = encoded(picture(40, 40), form)
    for length in (0, 1, 10, len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(DamagedImageError):
            decode(data[:length])


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_exif_that_cannot_be_read_harms_no_image(form: str):
    exif = b"Exif\x00\x00garbage" if form == "JPEG" else b"garbage"
    assert torch.equal(decode(encoded(picture(), form, exif=exif)), decode(encoded(picture(), form)))
