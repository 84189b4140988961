"""The features of a person's own images, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mpp.data.inputs import CentreCrops, Images
from mpp.data.inventory import counted
from mpp.data.settings import DataSettings
from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.load import load_encoder
from mpp.evaluation.controls import MOST_PIXELS, Control
from mpp.evaluation.features import EncoderReader, FeatureLayer, Reader
from mpp.evaluation.settings import CONTROLS

NAMED = 5
"""Damaged images that a message names."""


def features(
    encoder: Backbone | str | Path,
    images: Images,
    *,
    layer: int | None = None,
    pool: Literal["avg", "token", "both"] | None = "avg",
    damaged: Literal["raise", "nan"] = "raise",
    image_size: int | None = None,
    patch_size: int | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    crop_pct: float = 1.0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    workers: int = 0,
    progress: bool = True,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The frozen features of images: float32 `(n, d)`, in their order.

    Images are resized and centre-cropped to the encoder's size, as `mpp evaluate` does, and normalised by the encoder.

    Args:
        encoder: what `load_encoder` gives, or what it takes: a run, a folder, `USER/NAME`, `timm:NAME`; or a control of
            `mpp evaluate` that has learnt nothing: `raw_pixels` or `patch_colors`.
        images: a folder, which is searched deeply and taken in the order of its sorted paths; a list of paths, PIL
            images or arrays; a `datasets.Dataset`; an array or tensor of uint8 pixels, `(n, h, w, 3)` or
            `(n, 3, h, w)`.
        layer: the block, counted from 1; None takes the last.
        pool: `avg`, the mean of the patch tokens; `token`, the class token; `both`, one after the other, `(n, 2d)`;
            None takes the encoder's own. A network without patches has its own alone.
        damaged: images that cannot be decoded `raise` an error that names them, or give rows of `nan` and a warning.
        image_size: pixels a side of what the encoder sees; None takes its own, and 32 for a control.
        patch_size: of the control `patch_colors`; None takes 8 × 8 patches.
        batch_size: images that go through the network at once.
        device: where the network runs; None takes a GPU if there is one. The encoder is left there.
        crop_pct: the share of the resized image's shorter side that the crop keeps.
        interpolation: how images are resized (always antialiased).
        workers: loader processes; 0 loads in this one.
        progress: show a progress bar, on a terminal or in a notebook.

    Raises:
        ValueError: if there are no images, some cannot be decoded, or the encoder has no such block or token.
    """
    if damaged not in ("raise", "nan"):
        raise ValueError(f"damaged is 'raise' or 'nan'; found {damaged!r}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    reader, size = _reader(encoder, image_size, patch_size, device)
    chosen = layer_of(reader, layer, pool) if isinstance(reader, EncoderReader) else reader.default
    if layer is not None and not isinstance(reader, EncoderReader):
        raise ValueError(f"{encoder} has no blocks; leave layer out")
    crops = CentreCrops(images, DataSettings(image_size=size, crop_pct=crop_pct, interpolation=interpolation))
    network = reader.encoder if isinstance(reader, EncoderReader) else torch.nn.Identity()
    was_training = network.training
    network.eval()
    found: list[Tensor] = []
    reasons: list[str] = []
    try:
        with torch.inference_mode(), tqdm(total=len(crops), desc="features", disable=None if progress else True) as bar:
            for pixels, wrong in DataLoader(_Decodable(crops), batch_size, num_workers=workers):
                reasons += wrong
                if damaged == "nan" or not any(reasons):  # else only the other damaged images are looked for
                    values = reader.read(pixels.to(device), [chosen])[chosen].cpu()
                    values[torch.tensor([bool(reason) for reason in wrong])] = torch.nan
                    found.append(values)
                bar.update(len(pixels))
    finally:
        network.train(was_training)
    if any(reasons):
        message = _damaged(crops.names, reasons)
        if all(reasons):
            raise ValueError(message)
        if damaged == "raise":
            raise ValueError(f"{message}\nrepair or remove them; damaged='nan' gives rows of NaN for them")
        warnings.warn(f"{message}\ntheir rows are NaN", stacklevel=2)
    return torch.cat(found).numpy()


class _Decodable(Dataset[tuple[Tensor, str]]):
    """Each crop with an empty text; for an image that cannot be decoded black pixels, and why."""

    def __init__(self, crops: CentreCrops) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        try:
            return self.crops[number], ""
        except ValueError as error:
            return torch.zeros(3, *2 * (self.crops.settings.image_size,), dtype=torch.uint8), str(error)


def _damaged(names: Sequence[str], reasons: Sequence[str]) -> str:
    """`2 of 1,200 images cannot be decoded:` and a line for each of the first."""
    wrong = [reason for reason in reasons if reason]
    more = [f"  and {len(wrong) - NAMED:,} more"] if len(wrong) > NAMED else []
    lines = [f"  {reason}" for reason in wrong[:NAMED]]
    return "\n".join([f"{len(wrong):,} of {counted(len(names), 'image')} cannot be decoded:", *lines, *more])


def _reader(
    encoder: Backbone | str | Path, image_size: int | None, patch_size: int | None, device: torch.device
) -> tuple[Reader, int]:
    """What reads the features, and pixels a side of its images."""
    if str(encoder) in CONTROLS:
        size = image_size or MOST_PIXELS
        return Control(str(encoder), size, patch_size), size
    if not isinstance(encoder, Backbone):
        encoder = load_encoder(encoder, image_size=image_size, patch_size=patch_size)
    elif image_size not in (None, encoder.image_size) or patch_size is not None:
        raise ValueError(f"this encoder takes {encoder.image_size} px; leave image_size and patch_size out")
    return EncoderReader(encoder.to(device)), encoder.image_size


def layer_of(reader: EncoderReader, block: int | None, pool: str | None) -> FeatureLayer:
    """The layer of a block, counted from 1, and a pool; None takes the last block, and the encoder's own pool.

    Raises:
        ValueError: if the encoder does not have it.
    """
    last, own = reader.default
    if not isinstance(reader.encoder, Encoder):
        if block is not None:
            raise ValueError(f"{reader.encoder.name} has no blocks of patches; leave layer out")
        return reader.default
    if block is not None and not 1 <= block <= last:
        raise ValueError(f"layer {block}: {reader.encoder.name} has the blocks 1 to {last}")
    if pool in ("token", "both") and getattr(reader.encoder.vit, "cls_token", None) is None:
        raise ValueError(f"{reader.encoder.name} has no class token; use pool='avg'")
    return FeatureLayer(block or last, pool or own)
