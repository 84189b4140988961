"""Pictures of masked patch prediction: the image, what the model sees of it, what it predicts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mpp.data.loader import Batch
from mpp.files import replacing
from mpp.objective.corruption import KEEP, SWAP
from mpp.objective.masked_patch import MaskedPatchPrediction
from mpp.objective.patches import patchify, unpatchify
from mpp.training.state import Callback

MASKED = 0.5
"""Grey level of a masked patch."""
PANEL = 160
"""Least pixels a side of one panel of the picture."""
GAP, TITLE = 6, 18
TITLES = ("original", "seen", "predicted")


def reconstruct(objective: MaskedPatchPrediction, pixels: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """What the model sees and what it predicts, each float32 `(b, 3, h, w)` in [0, 1].

    Seen: masked patches grey, swapped ones with the pixels of the patch whose embedding they got. Predicted: the
    predictions in the corrupted places, the visible patches as they are.
    """
    prediction = objective.forward(pixels, samples)
    patch_size, rows = objective.encoder.patch_size, objective.encoder.layout.grid
    patches = patchify(pixels, patch_size).float() / 255
    draw = objective.corruption.draw(objective.key, samples, objective.encoder.num_patches)
    index = draw.positions[..., None, None, None].expand(-1, -1, *patches.shape[2:])
    own = patches.gather(1, index)
    other = patches.gather(1, draw.others[..., None, None, None].expand_as(index))
    kinds = draw.kinds[..., None, None, None]
    instead = own.where(kinds == KEEP, other.where(kinds == SWAP, torch.full_like(own, MASKED)))
    guesses = objective.target.picture(prediction.logits, objective.patches(pixels, draw.positions))
    return (
        unpatchify(patches.scatter(1, index, instead), rows),
        unpatchify(patches.scatter(1, index, guesses.to(patches.dtype)), rows),
    )


def grid(columns: list[Tensor], titles: Iterable[str], panel: int = PANEL) -> Image.Image:
    """Panels side by side: each column float32 `(b, 3, h, w)` in [0, 1], one row an image, enlarged without blur."""
    images = torch.stack([column.cpu() for column in columns], dim=1)
    factor = max(-(-panel // images.shape[-1]), 1)
    images = (images * 255).round().to(torch.uint8)
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    rows, count, _, height, width = images.shape
    size = (count * (width + GAP) + GAP, rows * (height + GAP) + GAP + TITLE)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        draw.text((left + width // 2, TITLE // 2 + 2), title, fill="black", anchor="mm")
        for row in range(rows):
            panel_pixels = rearrange(images[row, column], "c h w -> h w c").numpy()
            picture.paste(Image.fromarray(panel_pixels), (left, TITLE + GAP + row * (height + GAP)))
    return picture


def reconstructions(accelerator: Accelerator, shown: Batch, folder: Path, *, every: int) -> Callback:
    """A callback that draws some held-out images as `folder/step-….png`, for masked patch prediction."""
    pixels, samples = shown.pixels, shown.samples

    def call(step: int, objective: nn.Module) -> Iterable[tuple[str, str]]:
        if not accelerator.is_main_process:
            return
        assert isinstance(objective, MaskedPatchPrediction)
        was_training = objective.training
        objective.eval()
        with torch.no_grad(), accelerator.autocast():
            seen, predicted = reconstruct(objective, pixels.to(accelerator.device), samples.to(accelerator.device))
        objective.train(was_training)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:09d}.png"
        with replacing(path) as draft:
            grid([pixels.float() / 255, seen, predicted], TITLES).save(draft, format="PNG")
        yield "reconstructions", str(path.relative_to(folder.parent))

    return Callback(every, call)
