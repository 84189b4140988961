"""JPEG files to train on: drawn scenes, as large as ImageNet's usual photograph."""

from __future__ import annotations

import json
import os
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from mpp.data.dead_leaves import scenes

WIDTH, HEIGHT = 500, 375
TILES = 3, 2
NOISE = 17.0
"""Standard deviation of the grain, which makes files of about 110 kB, as ImageNet's are."""
CHUNK = 10


def folder_of_images(work: Path, count: int) -> tuple[Path, dict[str, float]]:
    """The folder, drawn once, and facts about it."""
    folder, facts = work / "images", work / "images.json"
    if not facts.is_file():
        begun = time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        starts = range(0, count, CHUNK)
        jobs = [(folder, start, min(CHUNK, count - start)) for start in starts]
        processes = min(os.cpu_count() or 1, len(jobs), 16)
        if processes > 1:
            with get_context("fork").Pool(processes) as pool:
                pool.starmap(_draw, jobs, chunksize=1)
        else:
            for job in jobs:
                _draw(*job)
        sizes = [path.stat().st_size for path in folder.iterdir()]
        drawn = {
            "images": len(sizes),
            "mean_kB": sum(sizes) / len(sizes) / 1000,
            "seconds": time.perf_counter() - begun,
        }
        facts.write_text(json.dumps(drawn))
    return folder, json.loads(facts.read_text())


def _draw(folder: Path, start: int, count: int) -> None:
    """Mosaics of small scenes, enlarged, with grain."""
    across, down = TILES
    drawn, _ = scenes("a", np.arange(start, start + count * across * down, dtype=np.int64))
    for number in range(count):
        tiles = drawn[number * across * down : (number + 1) * across * down]
        mosaic = np.concatenate([np.concatenate(list(tiles[row * across :][:across]), axis=1) for row in range(down)])
        large = np.asarray(Image.fromarray(mosaic).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = np.random.default_rng(start + number).normal(0, NOISE, large.shape).astype(np.float32)
        pixels = np.clip(large + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{start + number:06d}.jpg", quality=90)
