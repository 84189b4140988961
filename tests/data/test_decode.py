"""Any picture comes out as upright RGB in 0…255, whatever its mode, depth and form; a cut one is damaged."""

from __future__ import annotations

import ctypes
import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.io import decode_jpeg

from mpp.data.decode import DamagedImageError, as_ppm, decode
from mpp.data.loader import EvaluationCrops, batches
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
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


@pytest.mark.parametrize("header", [b"P6\n%d %d\n255\n", b"P6 %d %d 255 ", b"P6\n# a comment\n%d %d\n255\n"])
def test_uncompressed_files_come_out_as_pil_s_whatever_their_header(header: bytes):
    pixels = np.asarray(picture(9, 14))
    assert header % (14, 9) + pixels.tobytes() != as_ppm(pixels[::-1])
    assert np.array_equal(decode(header % (14, 9) + pixels.tobytes()).permute(1, 2, 0).numpy(), pixels)
    assert decode(as_ppm(pixels), max_pixels=126).shape == (3, 9, 14)
    with pytest.raises(DamagedImageError):
        decode(header % (14, 10) + pixels.tobytes())
    with pytest.raises(DamagedImageError, match="more than the 125"):
        decode(as_ppm(pixels), max_pixels=125)


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


# Damaged JPEG files, of which libjpeg warns


@pytest.fixture
def noisy_jpeg() -> bytes:
    """A JPEG file that libjpeg decodes with a warning: bytes in the middle are overwritten."""
    data = bytearray(encoded(Image.effect_noise((64, 64), 90), "JPEG"))
    middle = data.index(b"\xff\xda") + 200
    data[middle : middle + 60] = b"\x55" * 60
    return bytes(data)


def as_torchvision(data: bytes) -> torch.Tensor:
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    assert isinstance(pixels, torch.Tensor)
    return pixels


def test_a_warning_of_libjpeg_is_not_printed_and_changes_no_pixel(noisy_jpeg: bytes, capfd):
    expected = as_torchvision(noisy_jpeg)
    assert "Corrupt JPEG data" in capfd.readouterr().err, "the file is one that libjpeg warns of"
    assert torch.equal(decode(noisy_jpeg), expected.expand(3, -1, -1))
    assert capfd.readouterr().err == ""


def test_threads_and_loader_processes_are_silent_too(tmp_path, noisy_jpeg: bytes, capfd):
    threads = [threading.Thread(target=lambda: [decode(noisy_jpeg) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(noisy_jpeg)
    settings = DataSettings(source=str(tmp_path), image_size=16)
    rows = open_splits(settings, 0).train
    capfd.readouterr()
    for workers in (0, 1):
        assert len(list(batches(EvaluationCrops(rows, settings), [np.arange(4), np.arange(4)], workers=workers))) == 2
    assert "JPEG" not in capfd.readouterr().err


def test_c_libraries_can_print_again_after_decoding(noisy_jpeg: bytes, capfd):
    decode(noisy_jpeg)
    with pytest.raises(DamagedImageError):
        decode(noisy_jpeg[:300])
    capfd.readouterr()
    ctypes.CDLL(None).perror(b"still here")
    as_torchvision(noisy_jpeg)
    error = capfd.readouterr().err
    assert "still here" in error
    assert "Corrupt JPEG data" in error


# Headers that declare a huge image


def huge(form: str) -> bytes:
    """An image of 64 pixels whose header declares a gigapixel."""
    if form == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 30_000, 8, 2, 0, 0, 0)
        data = encoded(picture(8, 8))
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    data = bytearray(encoded(picture(8, 8), "JPEG", progressive=form == "progressive JPEG"))
    at = data.index(b"\xff\xc2" if form == "progressive JPEG" else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 40_000)
    return bytes(data)


@pytest.mark.parametrize("form", ["JPEG", "progressive JPEG", "PNG"])
def test_a_header_of_a_gigapixel_is_refused_before_anything_is_decoded(form: str):
    begun = time.perf_counter()
    with pytest.raises(DamagedImageError, match=r"1,?200,?000,?000|40,000 × 30,000 pixels, more than the 134,217,728"):
        decode(huge(form))
    assert time.perf_counter() - begun < 0.5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_limit_is_the_last_size_that_is_decoded(form: str):
    image = encoded(picture(40, 30), form)
    assert decode(image, max_pixels=1200).shape[0] == 3
    with pytest.raises(DamagedImageError, match=r"more than the 1,199 that data\.max_pixels allows"):
        decode(image, max_pixels=1199)


def test_a_neighbour_replaces_an_image_over_the_limit(tmp_path):
    for number, size in enumerate((20, 60, 20, 20)):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(size, size), "JPEG"))
    settings = DataSettings(source=str(tmp_path), image_size=16, max_pixels=400, split="train[:3]",
                            validation_split="train[3:]")  # fmt: skip
    crops = EvaluationCrops(open_splits(settings, 0).train, settings)
    batch = crops[np.array([1, 2])]
    assert torch.equal(batch.pixels[0], batch.pixels[1])
    ((row, reason),) = batch.damaged
    assert row == 1
    assert "60 × 60 pixels" in reason
