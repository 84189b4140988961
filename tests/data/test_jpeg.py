"""A crop of a JPEG has the pixels of the whole image, however few rows are decoded; a smaller scale is near them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from mpp.data import jpeg
from mpp.data.crops import Crop, whole
from mpp.data.decode import DamagedImageError, decode, decode_crop
from mpp.data.loader import EvaluationCrops, TrainingCrops
from mpp.data.settings import DataSettings
from mpp.data.splits import open_table
from tests.support.runs import encoded, picture

KINDS = {"4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2}, "grey": {}}
WAYS = {"baseline": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 3}}


def written(kind: str, way: str, height: int, width: int, orientation: int = 1, seed: int = 0) -> bytes:
    image = picture(height, width, seed)
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a photograph", orientation
    return encoded(image.convert("L") if kind == "grey" else image, "JPEG", **KINDS[kind], **WAYS[way], exif=exif)


def torchcodec_s(data: Tensor) -> Any:
    from torchcodec.decoders import decode_jpeg  # pyright: ignore

    return decode_jpeg(data, mode="UNCHANGED")


@pytest.fixture(params=["torchvision", "torchcodec"])
def decoder(request, monkeypatch) -> None:
    """Decoding by each of the two functions that may be there."""
    if request.param == "torchvision":
        function = partial(decode_jpeg, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    else:
        function = torchcodec_s
        try:
            function(torch.frombuffer(bytearray(written("grey", "baseline", 8, 8)), dtype=torch.uint8))
        except Exception as error:  # not installed, or for another version of torch
            pytest.skip(f"no torchcodec: {error}")
    monkeypatch.setattr(jpeg, "_decode_jpeg", function)


def torchvision_s(data: bytes) -> Tensor:
    pixels = decode_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB, apply_exif_orientation=True
    )
    assert isinstance(pixels, Tensor)
    return pixels


def some_crop(draw: random.Random, height: int, width: int) -> Crop:
    tall, wide = draw.randint(1, height), draw.randint(1, width)
    return Crop(draw.randint(0, height - tall), draw.randint(0, width - wide), tall, wide, False)


def inside(pixels: Tensor, crop: Crop) -> Tensor:
    found = pixels[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    assert found.shape[1:] == (crop.height, crop.width)
    return found


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_is_that_of_the_whole_image(kind: str, way: str, orientation: int):
    draw = random.Random(f"{kind} {way} {orientation}")
    for height, width in ((1, 1), (33, 17), (64, 48), (95, 70)):
        data = written(kind, way, height, width, orientation)
        expected = torchvision_s(data)
        for _ in range(8):
            crop = some_crop(draw, *expected.shape[1:])
            pixels, found = decode_crop(data, lambda *size, crop=crop: crop)
            assert torch.equal(inside(pixels, found), inside(expected, crop))


@pytest.mark.parametrize("way", WAYS)
def test_every_last_row_has_the_chroma_of_the_row_below(way: str):
    data = written("4:2:0", way, 100, 40)
    expected = torchvision_s(data)
    for rows in range(1, 101):
        pixels, crop = decode_crop(data, lambda height, width, rows=rows: Crop(0, 0, rows, width, False))
        assert torch.equal(inside(pixels, crop), expected[:, :rows])


@pytest.mark.skipif(jpeg.silent is False, reason="libjpeg would warn of the bytes that are skipped")
def test_rows_below_a_crop_are_not_decoded():
    pixels, _ = decode_crop(written("4:2:0", "baseline", 400, 40), lambda height, width: Crop(10, 0, 50, 40, False))
    assert 60 <= pixels.shape[1] < 70
    pixels, _ = decode_crop(written("4:2:0", "baseline", 400, 40, 6), lambda height, width: Crop(0, 340, 40, 50, False))
    assert 60 <= pixels.shape[2] < 70


def damages(draw: random.Random, data: bytes) -> bytes:
    """The file, cut, mutated, with its last scans missing or with other bytes at its end."""
    changed = bytearray(data)
    kind = draw.randrange(5)
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    if kind == 0:
        return data[: draw.randrange(4, len(data))]
    if kind == 1:
        return data[: draw.choice(scans) if len(scans) > 1 else draw.randrange(4, len(data))] + b"\xff\xd9"
    if kind == 2:
        return data + draw.randbytes(20)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(3, len(data))] = draw.randrange(256)
    return bytes(changed)


def outcome(act: Callable[[], Any]) -> Any:
    """What comes out, or the message if the file is damaged."""
    try:
        return act()
    except DamagedImageError as error:
        return str(error)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of damaged EXIF
def test_a_damaged_file_is_damaged_for_a_crop_as_for_the_whole(way: str):
    draw = random.Random(way)
    found = {"damaged": 0, "decoded": 0}
    for number in range(300):
        data = damages(draw, written(draw.choice(list(KINDS)), way, 40, 56, draw.randrange(9), number))
        crops: dict[tuple[int, int], Crop] = {}

        def choose(height: int, width: int, crops=crops) -> Crop:
            return crops.setdefault((height, width), some_crop(draw, height, width))

        expected = outcome(lambda data=data: decode(data))
        if isinstance(expected, str):
            found["damaged"] += 1
            assert outcome(lambda data=data, choose=choose: decode_crop(data, choose)) == expected
            continue
        found["decoded"] += 1
        pixels, crop = decode_crop(data, choose)
        assert torch.equal(inside(pixels, crop), inside(expected, crops[expected.shape[1], expected.shape[2]]))
    assert min(found.values()) > 20


# data.decode=scaled


def test_the_scale_is_the_smallest_that_suffices():
    for least in (1, 7, 224):
        for side in range(1, 2000):
            enough = [scale for scale in (1, 2, 4, 8) if side >= least * scale]
            assert jpeg.scale_for(Crop(0, 0, side, 3000, False), least) == max(enough, default=1)
            assert jpeg.scale_for(Crop(0, 0, 3000, side, False), least) == max(enough, default=1)


def smooth(height: int, width: int, orientation: int, **options) -> bytes:
    """A picture without details, every part of it another colour."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    return encoded(image, "JPEG", quality=95, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_scaled_crop_shows_the_same_part_of_the_upright_image(orientation: int, options: dict):
    data = smooth(301, 403, orientation, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    draw = random.Random(orientation)
    for least in (20, 40, 80):
        for _ in range(6):
            tall, wide = (draw.randint(least, side) for side in (upright.height, upright.width))
            top, left = draw.randint(0, upright.height - tall), draw.randint(0, upright.width - wide)
            chosen = Crop(top, left, tall, wide, False)
            pixels, crop = decode_crop(data, lambda *size, chosen=chosen: chosen, least=least)
            assert min(crop.height, crop.width) >= least
            assert max(abs(crop.height * jpeg.scale_for(chosen, least) - tall), 0) <= 8
            expected = upright.crop((left, top, left + wide, top + tall)).resize((crop.width, crop.height))
            error = inside(pixels, crop).permute(1, 2, 0).numpy().astype(float) - np.asarray(expected)
            assert np.abs(error).mean() < 6, "another part of the picture differs by about 60"


def test_grey_files_and_files_that_are_no_jpeg_are_scaled_or_not_alike():
    grey = encoded(picture(64, 64).convert("L"), "JPEG")
    pixels, crop = decode_crop(grey, whole, least=16)
    assert pixels.shape == (3, 16, 16)
    assert crop == Crop(0, 0, 16, 16, False)
    for form in ("PNG", "WEBP"):
        assert decode_crop(encoded(picture(64, 64), form), whole, least=16)[0].shape == (3, 64, 64)
    assert decode_crop(encoded(picture(64, 64).convert("CMYK"), "JPEG"), whole, least=16)[0].shape == (3, 64, 64)


def test_the_setting_decides_and_small_images_are_not_touched(tmp_path):
    for number, (height, width) in enumerate([(40, 60), (300, 400)]):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(height, width, number), "JPEG"))
    settings = DataSettings(source=str(tmp_path), image_size=32)
    scaled = settings.model_copy(update={"decode": "scaled"})
    rows = open_table(settings)
    for kind in (lambda each: TrainingCrops(rows, each, 0), lambda each: EvaluationCrops(rows, each)):
        numbers = np.arange(2)
        small, large = (
            torch.equal(one, other)
            for one, other in zip(kind(settings)[numbers].pixels, kind(scaled)[numbers].pixels, strict=True)
        )
        assert not (small and large), "noise at half its size has other pixels"
    small = EvaluationCrops(rows, scaled)[np.array([0])].pixels
    assert torch.equal(small, EvaluationCrops(rows, settings)[np.array([0])].pixels)


def test_runs_without_the_setting_decoded_in_full():
    assert DataSettings.model_validate({}).decode == "full"


def test_a_cache_of_whole_images_is_not_scaled():
    with pytest.raises(ValueError, match="cache keeps whole images"):
        DataSettings(decode="scaled", cache=True)
