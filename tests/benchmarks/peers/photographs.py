"""A folder of JPEGs of 500 × 375: drawn, or real ones brought to this size."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

WIDTH, HEIGHT, QUALITY = 500, 375, 90
COUNT = 1024


def make(folder: Path, source: Path | None = None, *, count: int) -> Path:
    """Write `count` JPEGs into one class folder, unless they are there.

    Raises:
        ValueError: if the source holds too few images.
    """
    inner = folder / "photographs"
    if len(list(inner.glob("*.jpg"))) == count:
        return folder
    inner.mkdir(parents=True, exist_ok=True)
    found = [] if source is None else sorted(islice(_images(source), count))
    if source is not None and len(found) < count:
        raise ValueError(f"{source} holds {len(found)} images, but {count} are needed")
    for number in range(count):
        image = _drawn(number) if source is None else _resized(found[number])
        image.save(inner / f"{number:05d}.jpg", quality=QUALITY)
    return folder


def _images(source: Path):
    return (path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def _resized(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.fit(image.convert("RGB"), (WIDTH, HEIGHT))


def _drawn(seed: int) -> Image.Image:
    """Soft colours, a few dozen shapes that hide each other, and the noise of a sensor."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8))
    image = ground.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, side = rng.integers(WIDTH), rng.integers(HEIGHT), 4 + rng.pareto(1.5) * 8
        box, colour = (x - side, y - side, x + side, y + side), tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
