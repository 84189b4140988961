"""Transparency, 16 bits and pages: what becomes of them, and that it is said."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpp.data.decode import DamagedImageError, decode
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
from mpp.data.survey import ColourHistogram, Survey
from tests.support.runs import encoded, picture


def half_transparent(mode: str) -> Image.Image:
    """Noise behind a gradient of transparency; palettes have one transparent colour."""
    image = picture()
    if mode == "P":
        image = image.quantize(8)
        image.info["transparency"] = 3
        return image
    alpha = Image.fromarray(np.linspace(0, 255, 240).astype(np.uint8).reshape(12, 20))
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("background", "colour"), [("white", (255, 255, 255)), ("#0a141e", (10, 20, 30))])
def test_transparent_pixels_are_blended_with_the_background(mode: str, background: str, colour: tuple[int, ...]):
    image = half_transparent(mode)
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + np.array(colour) * (1 - alpha)
    pixels = decode(encoded(image), background=background).permute(1, 2, 0).numpy()
    assert np.abs(pixels - expected).max() <= 1
    ignored = decode(encoded(image), background=None).permute(1, 2, 0).numpy()
    assert np.array_equal(ignored, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_the_highest_8_of_the_bits_in_use_are_kept(form: str, bits: int):
    values = np.random.default_rng(0).integers(0, 2**bits, (9, 13)).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(values), form), bits=bits)
    assert np.array_equal(pixels.numpy(), np.stack([values >> (bits - 8)] * 3))
    values[0, 0] = 65535
    assert decode(encoded(Image.fromarray(values), form), bits=bits)[0, 0, 0] == 255


def colours_of_16_bits(values: torch.Tensor) -> bytes:
    """A PNG file of uint16 `(3, h, w)`, which PIL cannot write."""

    _, height, width = values.shape
    rows = values.permute(1, 2, 0).numpy().astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_colours_of_16_bits_keep_the_highest_8_of_those_in_use():
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 4096, (3, 9, 13)))
    assert torch.equal(decode(colours_of_16_bits(values), bits=12).long(), values >> 4)
    assert torch.equal(decode(colours_of_16_bits(values)).long(), values >> 8)


def survey_of(folder: Path, **settings) -> Survey:
    given = DataSettings(source=str(folder), image_size=16, **settings)
    return Survey(open_splits(given, 0).train, given)


@pytest.mark.parametrize("colours", [False, True])
def test_dark_images_of_16_bits_are_warned_of_with_the_bits_that_they_use(tmp_path: Path, colours: bool):
    for number in range(20):
        values = np.random.default_rng(number).integers(0, 4081, (3, 20, 20))
        grey = encoded(Image.fromarray(values[0].astype(np.uint16)))
        data = colours_of_16_bits(torch.from_numpy(values)) if colours else grey
        (tmp_path / f"{number}.png").write_bytes(data)
    found = survey_of(tmp_path)
    assert any("will be nearly black: set data.bits=12" in warning for warning in found.warnings)
    assert "all 18 images looked at have 16 bits: values from 0 to 65,535 become 0 to 255" in found.notes[0]
    assert not [warning for warning in survey_of(tmp_path, bits=12).warnings if "bits" in warning]
    assert any("makes all above 1,023 white" in warning for warning in survey_of(tmp_path, bits=10).warnings)


def test_pages_transparency_and_few_images_are_said_and_damage_does_no_harm(tmp_path: Path):
    for number in range(20):
        (tmp_path / f"{number:02d}.png").write_bytes(encoded(half_transparent("RGBA") if number < 8 else picture()))
    picture().save(tmp_path / "pages.tiff", save_all=True, append_images=[picture()] * 4)
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = survey_of(tmp_path, split="train", validation_split="train[:1]")
    assert found.notes[0].startswith("1 of 22 images that were looked at have several pages or frames, up to 5: only")
    assert found.notes[1].startswith("8 of 22 images that were looked at can be transparent: transparency is shown on")
    assert ["only 22 images" in warning for warning in found.warnings] == [True]


def test_plain_images_need_no_words(tmp_path: Path):
    for number in range(120):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(seed=number), "JPEG"))
    found = survey_of(tmp_path)
    assert (found.notes, found.warnings) == ([], [])


def test_the_entropy_of_colours_is_that_of_its_definition():
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colours = ColourHistogram()
    for part in pixels.split(2):
        colours.add(part)
    cubes = pixels[:, :, ::4, ::4].numpy() // 32
    _, counts = np.unique(cubes.transpose(0, 2, 3, 1).reshape(-1, 3), axis=0, return_counts=True)
    shares = counts / counts.sum()
    assert colours.entropy == pytest.approx(-(shares * np.log(shares)).sum())
    constant = ColourHistogram()
    constant.add(pixels // 16)
    assert constant.entropy == 0


def tiff_of_16_bits(values: np.ndarray) -> bytes:
    """A TIFF file of uint16 `(h, w, 3)`, which PIL cannot write."""
    height, width, _ = values.shape
    bits_at, data_at = 8 + 2 + 9 * 12 + 4, 8 + 2 + 9 * 12 + 4 + 6
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2),
               (273, 4, 1, data_at), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, values.size * 2)]  # fmt: skip
    directory = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return (
        b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 16, 16, 16) + values.astype("<u2").tobytes()
    )


def test_a_colour_tiff_of_16_bits_is_not_read_wrongly_in_silence():
    values = np.random.default_rng(0).integers(0, 4096, (9, 13, 3))
    assert np.array_equal(decode(tiff_of_16_bits(values)).permute(1, 2, 0).numpy(), values >> 8)
    with pytest.raises(DamagedImageError, match=r"only the highest 8 bits can be read from a TIFF; with data\.bits=12"):
        decode(tiff_of_16_bits(values), bits=12)


@pytest.mark.parametrize("colour", ["whit", "#ffffff00", ""])
def test_a_background_is_an_opaque_colour(colour: str):
    with pytest.raises(ValueError, match="opaque colour"):
        DataSettings(background=colour)
