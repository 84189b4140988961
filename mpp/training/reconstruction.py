"""Pictures of held-out images: the corrupted input and the prediction."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from mpp.data.loader import EvaluationCrops
from mpp.data.sampler import Numbers
from mpp.files import replacing
from mpp.objective.base import Objective
from mpp.training.state import Callback

PANEL = 160
"""Least pixels a side of one panel of the picture."""
GAP, TITLE = 6, 18


def grid(columns: list[Tensor], titles: Iterable[str], panel: int = PANEL) -> Image.Image:
    """Panels side by side: each column float32 `(b, 3, h, w)` in [0, 1], one row an image, enlarged without blur."""
    images = (torch.stack([column.cpu() for column in columns], dim=1) * 255).round().to(torch.uint8)
    factor = max(-(-panel // images.shape[-1]), 1)
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    panels = to_pil_image(make_grid(images.flatten(0, 1), nrow=len(columns), padding=GAP, pad_value=255))
    picture = Image.new("RGB", (panels.width, panels.height + TITLE), "white")
    picture.paste(panels, (0, TITLE))
    width = images.shape[-1]
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        ImageDraw.Draw(picture).text((left + width // 2, TITLE // 2 + 2), title, fill="black", anchor="mm")
    return picture


def reconstructions(
    accelerator: Accelerator, crops: EvaluationCrops, rows: Numbers, folder: Path, *, every: int
) -> Callback:
    """A callback in which the main process draws these rows as `folder/step-….png`, if the objective has a picture."""

    def call(step: int, objective: Objective) -> Iterable[tuple[str, str]]:
        if not accelerator.is_main_process:
            return
        shown = crops[rows]
        with torch.no_grad(), accelerator.autocast():
            columns = objective.picture(shown.pixels.to(accelerator.device), shown.samples.to(accelerator.device))
        if not columns:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:09d}.png"
        with replacing(path) as draft:
            grid(list(columns.values()), columns).save(draft, format="PNG")
        yield "reconstructions", str(path.relative_to(folder.parent))

    return Callback(every, call)
