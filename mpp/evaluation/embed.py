"""The features of a person's own images, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mpp.data.inputs import CentreCrops, Images
from mpp.data.settings import DataSettings
from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.load import load_encoder
from mpp.evaluation.features import EncoderReader, FeatureLayer


def features(
    encoder: Backbone | str | Path,
    images: Images,
    *,
    layer: int | None = None,
    pool: Literal["avg", "token", "both"] | None = "avg",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    crop_pct: float = 1.0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    workers: int = 0,
    progress: bool = True,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The frozen features of images: float32 `(n, d)`, in their order.

    Images are resized and centre-cropped to the encoder's size, as `mpp.evaluate` does, and normalised by the encoder.

    Args:
        encoder: what `load_encoder` gives, or what it takes: a run, a folder, `USER/NAME`, `timm:NAME`.
        images: a folder, which is searched deeply and taken in the order of its sorted paths; a list of paths, PIL
            images or arrays; a `datasets.Dataset`; an array or tensor of uint8 pixels, `(n, h, w, 3)` or
            `(n, 3, h, w)`.
        layer: the block, counted from 1; None takes the last.
        pool: `avg`, the mean of the patch tokens; `token`, the class token; `both`, one after the other, `(n, 2d)`;
            None takes the encoder's own. A network without patches has its own alone.
        batch_size: images that go through the network at once.
        device: where the network runs; None takes a GPU if there is one. The encoder is left there.
        crop_pct: the share of the resized image's shorter side that the crop keeps.
        interpolation: how images are resized (always antialiased).
        workers: loader processes; 0 loads in this one.
        progress: show a progress bar, on a terminal or in a notebook.

    Raises:
        ValueError: if there are no images, one cannot be read, or the encoder has no such block or token.
    """
    if not isinstance(encoder, Backbone):
        encoder = load_encoder(encoder)
    settings = DataSettings(image_size=encoder.image_size, crop_pct=crop_pct, interpolation=interpolation)
    crops = CentreCrops(images, settings)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    reader = EncoderReader(encoder.to(device))
    chosen = layer_of(reader, layer, pool)
    was_training = encoder.training
    encoder.eval()
    found = []
    try:
        with torch.inference_mode(), tqdm(total=len(crops), desc="features", disable=None if progress else True) as bar:
            for pixels in DataLoader(crops, batch_size, num_workers=workers):
                found.append(reader.read(pixels.to(device), [chosen])[chosen].cpu())
                bar.update(len(pixels))
    finally:
        encoder.train(was_training)
    return torch.cat(found).numpy()


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
