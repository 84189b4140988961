"""Pictures of images, what the model sees of them, and what it predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from mpp.data.inputs import CentreCrops, Images
from mpp.data.loader import EvaluationCrops
from mpp.data.sampler import Numbers
from mpp.data.settings import DataSettings
from mpp.files import replacing
from mpp.objective.base import Objective
from mpp.training.state import Callback

PANEL = 160
"""Least pixels a side of one panel of the picture."""
GAP = 6
SMALLEST, LETTERS = 12, 30
"""Pixels of the smallest letters; larger ones are this fraction of the picture's width: a page shows it smaller."""
FRAMES = ((213, 94, 0), (240, 228, 66), (86, 180, 233), (0, 158, 115))
"""Colours of the marks, in their order; people who are colour-blind can tell them apart (Okabe and Ito 2008)."""
STRIPES = ((225, 225, 225), (120, 120, 120))
STRIPE = 2
"""Pixels of a stripe of the hatch, which is finer than the pixels of an enlarged image."""


def reconstruct(
    objective: Objective,
    images: Images,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    crop_pct: float = 1.0,
    interpolation: str = "bilinear",
) -> Image.Image:
    """A picture of images, what the model sees of them, and what it predicts; one row an image.

    Patches are framed by what was done to them, with a legend below. A hatch fills what is masked.

    Args:
        objective: what `load_objective` gives, or any that predicts patches.
        images: as for `features`: a folder, a list of paths, PIL images or arrays, a `datasets.Dataset`, or an array or
            tensor of uint8 pixels. All of them are drawn.
        seed: decides, with the objective's own seed, which patches are corrupted.
        device: where the network runs; None takes a GPU if there is one. The objective is left there.
        crop_pct: of the crop, as for `features`.
        interpolation: of the crop, as for `features`.

    Raises:
        ValueError: if there are no images, one cannot be read, or the objective predicts no pixels.
    """
    size = objective.encoder.image_size
    settings = DataSettings.model_validate({"image_size": size, "crop_pct": crop_pct, "interpolation": interpolation})
    crops = CentreCrops(images, settings)
    pixels = torch.stack([crops[number] for number in range(len(crops))])
    samples = torch.arange(len(pixels)) + (seed << 32)  # no two seeds share a number
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    was_training = objective.training
    objective.to(device).eval()
    try:
        picture = draw(objective, pixels.to(device), samples.to(device))
    finally:
        objective.train(was_training)
    if picture is None:
        raise ValueError(f"{type(objective).__name__} predicts no pixels: there is nothing to draw")
    return picture


def draw(objective: Objective, pixels: Tensor, samples: Tensor) -> Image.Image | None:
    """The picture of uint8 pixels `(b, 3, h, w)`, corrupted as int64 sample numbers `(b,)` decide; None if none."""
    with torch.no_grad():
        columns = objective.picture(pixels, samples)
    return grid(list(columns.values()), columns, marks=objective.marks(samples)) if columns else None


def grid(
    columns: list[Tensor], titles: Iterable[str], panel: int = PANEL, marks: Mapping[str, Tensor] | None = None
) -> Image.Image:
    """Panels side by side, one row an image, enlarged without blur.

    Args:
        columns: each float32 `(b, 3, h, w)` in [0, 1]; a hatch is drawn where it is NaN.
        titles: of the columns.
        panel: least pixels a side of a panel.
        marks: bool `(b, rows, columns)` by name: patches to frame, in all columns but the first. A legend names them.
    """
    values = torch.stack([column.cpu() for column in columns], dim=1)
    factor = max(-(-panel // values.shape[-1]), 1)
    values = _enlarged(values, factor, factor)
    hidden = values.isnan().any(2, keepdim=True)
    images = torch.where(hidden, _hatch(*values.shape[-2:]), (values.nan_to_num(0) * 255).round().to(torch.uint8))
    marks = {name: mark.cpu() for name, mark in (marks or {}).items()}
    for mark, colour in zip(marks.values(), FRAMES, strict=False):
        frames = _frames(mark, *images.shape[-2:])[:, None, None]
        images[:, 1:] = torch.where(frames, torch.tensor(colour, dtype=torch.uint8)[:, None, None], images[:, 1:])
    panels = to_pil_image(make_grid(images.flatten(0, 1), nrow=len(columns), padding=GAP, pad_value=255))
    size, width = max(panels.width // LETTERS, SMALLEST), images.shape[-1]
    title_height, legend_height = size + 8, size + 12 if marks else 0
    picture = Image.new("RGB", (panels.width, panels.height + title_height + legend_height), "white")
    picture.paste(panels, (0, title_height))
    pen = _pen(picture, size)
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        pen.text((left + width // 2, title_height // 2 + 2), title, fill="black", anchor="mm")
    hatched = {name for name, mark in marks.items() if (_whole(mark, *hidden.shape[-2:])[:, None, None] & hidden).any()}
    _draw_legend(picture, marks, hatched, size)
    return picture


def _pen(picture: Image.Image, size: int) -> ImageDraw.ImageDraw:
    """Writes letters of so many pixels."""
    pen = ImageDraw.Draw(picture)
    pen.font = ImageFont.load_default(size)
    return pen


def _enlarged(values: Tensor, rows: int, columns: int) -> Tensor:
    return values.repeat_interleave(rows, -2).repeat_interleave(columns, -1)


def _whole(mark: Tensor, height: int, width: int) -> Tensor:
    """bool `(b, rows, columns)` of patches → `(b, height, width)` of their pixels."""
    return _enlarged(mark, height // mark.shape[-2], width // mark.shape[-1])


def _frames(mark: Tensor, height: int, width: int) -> Tensor:
    """The edges of the marked patches: bool `(b, height, width)`."""
    edges = []
    for length, count in ((height, mark.shape[-2]), (width, mark.shape[-1])):
        patch = length // count
        line, at = max(patch // 12, 1), torch.arange(length) % patch
        edges.append((at < line) | (at >= patch - line))
    return _whole(mark, height, width) & (edges[0][:, None] | edges[1])


def _hatch(height: int, width: int) -> Tensor:
    """Diagonal stripes, uint8 `(3, height, width)`."""
    stripe = (torch.arange(height)[:, None] + torch.arange(width)) // STRIPE % 2
    return torch.tensor(STRIPES, dtype=torch.uint8)[stripe].movedim(-1, 0)


def _draw_legend(picture: Image.Image, marks: Iterable[str], hatched: set[str], size: int) -> None:
    """A framed square and a word for each mark, in the lowest line of the picture."""
    pen, left, top = _pen(picture, size), GAP, picture.height - size - 8
    for name, colour in zip(marks, FRAMES, strict=False):
        if name in hatched:
            picture.paste(to_pil_image(_hatch(size, size)), (left, top))
        pen.rectangle((left, top, left + size - 1, top + size - 1), outline=colour, width=2)
        pen.text((left + size + 5, top + size // 2), name, fill="black", anchor="lm")
        left += 2 * size + round(pen.textlength(name)) + 8


def reconstructions(
    accelerator: Accelerator, crops: EvaluationCrops, rows: Numbers, folder: Path, *, every: int
) -> Callback:
    """A callback in which the main process draws these rows as `folder/step-….png`, if the objective has a picture.

    Trackers that take images get it too.
    """

    def call(step: int, objective: Objective) -> Iterable[tuple[str, str]]:
        if not accelerator.is_main_process:
            return
        shown = crops[rows]
        with accelerator.autocast():
            picture = draw(objective, shown.pixels.to(accelerator.device), shown.samples.to(accelerator.device))
        if picture is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:09d}.png"
        with replacing(path) as draft:
            picture.save(draft, format="PNG")
        for tracker in accelerator.trackers:
            _log(tracker, picture, step)
        yield "reconstructions", str(path.relative_to(folder.parent))

    return Callback(every, call)


def _log(tracker: Any, picture: Image.Image, step: int) -> None:
    """Give the picture to a tracker of Accelerate, in the form that it takes."""
    name = getattr(tracker, "name", "")
    if name == "tensorboard":
        tracker.log_images({"reconstructions": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    elif name in ("wandb", "trackio", "swanlab"):
        tracker.log_images({"reconstructions": [picture]}, step=step)
