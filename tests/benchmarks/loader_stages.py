"""Where the time of the loader goes, in ms an image: `python -m tests.benchmarks.loader_stages [FOLDER_OR_PARQUET]`.

JPEG files, as in `tests.benchmarks.loader`; one process, one thread, CPU time, medians over rounds of all images.
Entropy decoding is libjpeg's time for the same rows at an eighth of their size: it decodes all codes then, and hardly
transforms any. The two halves of decoding are read from two builds of libjpeg-turbo, Pillow's and torch's.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import torch
from PIL import Image

from mpp import randomness
from mpp.data import jpeg
from mpp.data.crops import WORDS_PER_CROP, Crop, cut, random_crop
from mpp.data.loader import TrainingCrops
from mpp.data.settings import DataSettings
from mpp.data.splits import open_table
from tests.benchmarks.loader import photographs

EIGHTH = 8


def entropy_decoded(encoded: bytes, header: jpeg.Header, crop: Crop) -> Image.Image:
    """The rows that a crop needs, opened at an eighth of their size; decoded by `load`."""
    data = bytearray(encoded)
    struct.pack_into(">H", data, header.height_at, min(crop.top + crop.height + header.margin, header.height))
    image = Image.open(io.BytesIO(data))
    image.draft(None, (image.width // EIGHTH, image.height // EIGHTH))  # pyright: ignore[reportArgumentType]
    return image


def timed(calls: list[Callable[[], object]]) -> float:
    """Milliseconds of CPU time a call."""
    start = time.process_time()
    for call in calls:
        call()
    return 1000 * (time.process_time() - start) / len(calls)


def main() -> None:
    """Measure, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", nargs="?")
    arguments.add_argument("--images", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=15)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        source = given.source or photographs(Path(folder), 500, 375, given.images)
        settings = DataSettings(source=str(source))
        rows = open_table(settings)
        crops = TrainingCrops(rows, settings, 0)
        numbers = np.arange(min(given.images, len(rows)))
        words = randomness.words(crops.key, numbers[:, None], np.arange(WORDS_PER_CROP, dtype=np.int64)[None, :])
        files = [rows.encoded(row) for row in crops.order.rows(numbers).tolist()]
        headers = [header for file in files if (header := jpeg.read_header(file)) is not None and header.in_parts]
        assert len(headers) == len(files), "only JPEG files of which rows can be decoded are divided into stages"
        chosen = [
            random_crop(draw, *header.upright, settings)
            for draw, header in zip(np.stack(words, axis=-1), headers, strict=True)
        ]
        parts = [jpeg.decode_part(*each) for each in zip(files, headers, chosen, strict=True)]
        taken: dict[str, list[float]] = {}
        for _ in range(given.rounds):
            opened = [entropy_decoded(*each) for each in zip(files, headers, chosen, strict=True)]
            decode = [partial(jpeg.decode_part, *each) for each in zip(files, headers, chosen, strict=True)]
            stages: dict[str, list[Callable[[], object]]] = {
                "whole": [partial(crops.__getitem__, numbers)],
                "read": [partial(rows.encoded, row) for row in crops.order.rows(numbers).tolist()],
                "entropy": [image.load for image in opened],
                "decode": list(decode),
                "resize": [partial(cut, part[0], part[1], settings) for part in parts if part is not None],
            }
            for name, calls in stages.items():
                taken.setdefault(name, []).append(timed(calls) / (len(numbers) if name == "whole" else 1))
        found = {name: statistics.median(values) for name, values in taken.items()}
    lines = {
        "reading the file from the table": found["read"],
        "entropy decoding of the rows": found["entropy"],
        "inverse DCT, upsampling, colours of the rows": found["decode"] - found["entropy"],
        "cutting and resizing": found["resize"],
        "the rest: header, draws, crop, copy into the batch": found["whole"] - sum(
            found[name] for name in ("read", "decode", "resize")
        ),
        "all": found["whole"],
    }  # fmt: skip
    for name, milliseconds in lines.items():
        print(f"| {name} | {milliseconds:.3f} | {milliseconds / found['whole']:.0%} |")


if __name__ == "__main__":
    main()
