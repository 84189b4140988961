"""Images a second and core of the loader, beside timm's own: `python -m tests.benchmarks.loader [FOLDER_OR_PARQUET]`.

Without a source, JPEG files of 500 × 375 pixels are made of the embedded images (quality 90, 4:2:0); `--size 4000x3000`
makes others. One process and one thread; the rows are measured in turn, and each shows the median of its rounds.
The last column is how far the pixels are from those of data.decode=full: the PSNR of the crops.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from mpp.data.dead_leaves import scenes
from mpp.data.loader import TrainingCrops
from mpp.data.settings import DataSettings
from mpp.data.splits import open_table
from mpp.data.table import ImageTable

BATCH = 16


def photographs(folder: Path, width: int, height: int, images: int) -> Path:
    """A Parquet file of JPEG files, each a mosaic of drawn scenes: about as many bytes a pixel as a photograph."""
    side = 96
    rows, columns = -(-height // side), -(-width // side)
    encoded = []
    for number in range(images):
        pixels, _ = scenes("a", np.arange(min(rows * columns, 200)) + 200 * number)
        tiles = np.stack(
            [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC)) for each in pixels]
        )
        mosaic = tiles[np.arange(rows * columns) % len(tiles)].reshape(rows, columns, side, side, 3)
        image = Image.fromarray(np.ascontiguousarray(mosaic.swapaxes(1, 2).reshape(rows * side, columns * side, 3)))
        file = io.BytesIO()
        image.crop((0, 0, width, height)).save(file, "JPEG", quality=90)
        encoded.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict({"image": encoded}, features=features).to_parquet(folder / "photographs.parquet")
    return folder / "photographs.parquet"


def timm_crops(rows: ImageTable, images: int) -> None:
    """What timm's loader does with the same files, by default: floats, normalised."""
    transform = create_transform(224, is_training=True)
    for row in range(images):
        with Image.open(io.BytesIO(rows.encoded(row % len(rows)))) as image:
            transform(image.convert("RGB"))


def our_crops(crops: TrainingCrops, images: int) -> torch.Tensor:
    """The same number of ours."""
    return torch.cat([crops[np.arange(first, first + BATCH)].pixels for first in range(0, images, BATCH)])


def main() -> None:
    """Measure, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("source", nargs="?")
    arguments.add_argument("--size", default="500x375", help="of the files that are made")
    arguments.add_argument("--images", type=int, default=64, help="in each round")
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        width, height = map(int, given.size.split("x"))
        made = given.source is None
        source = photographs(Path(folder), width, height, min(given.images, 64)) if made else given.source
        settings = [DataSettings(source=str(source), decode=decode) for decode in ("full", "scaled")]
        rows = open_table(settings[0])
        full, scaled = (TrainingCrops(rows, each, 0) for each in settings)
        sides: dict[str, Callable[[], object]] = {
            "timm": lambda: timm_crops(rows, given.images),
            "data.decode=full": lambda: our_crops(full, given.images),
            "data.decode=scaled": lambda: our_crops(scaled, given.images),
        }
        took: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(given.rounds):
            for name, side in sides.items():
                start = time.process_time()
                side()
                took[name].append(time.process_time() - start)
        error = (our_crops(full, given.images).double() - our_crops(scaled, given.images)).square().mean((1, 2, 3))
        psnr = 10 * torch.log10(255**2 / error)
        size = sum(len(rows.encoded(row)) for row in range(len(rows))) / len(rows)
        print(f"{len(rows)} files of {size / 1e3:,.0f} kB; median of {given.rounds} rounds of {given.images} images")
        for name, seconds in took.items():
            ratio = statistics.median(a / b for a, b in zip(took["timm"], seconds, strict=True))
            print(f"{name:20} {given.images / statistics.median(seconds):8.1f} images/s  {ratio:5.2f} × timm")
        print(f"scaled against full: PSNR {psnr.median():.1f} dB (median), {psnr.min():.1f} dB (least)")


if __name__ == "__main__":
    main()
