"""Frozen features: extracted once, at every layer, and cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from mpp.data.loader import EvaluationCrops, batches
from mpp.data.sampler import Numbers
from mpp.data.table import ImageTable
from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.export import weights_digest
from mpp.evaluation.settings import FeatureSettings
from mpp.files import replacing
from mpp.progress import quiet
from mpp.training.distributed import to_device


class FeatureLayer(NamedTuple):
    """A feature of an encoder: the block, counted from 1, and the pooling of its tokens."""

    block: int
    pool: str

    def __str__(self) -> str:
        return f"block {self.block}, {self.pool}"


class Features(NamedTuple):
    """The features of some images."""

    values: dict[FeatureLayer, Tensor]
    """float32 `(n, d)` for each layer."""
    labels: Tensor
    """int64 `(n,)`."""
    damaged: int
    """Images that could not be decoded, each replaced by a neighbour."""

    def take(self, rows: Numbers) -> Features:
        """The features of some of the images."""
        index = torch.from_numpy(rows)
        return Features({layer: value[index] for layer, value in self.values.items()}, self.labels[index], self.damaged)


class Reader:
    """Computes features: an encoder, or one of the controls."""

    default: FeatureLayer
    """The layer that is always evaluated."""
    centre_for_knn: ClassVar[bool] = False
    """Whether kNN subtracts the mean of train first."""

    def layers(self, settings: FeatureSettings) -> list[FeatureLayer]:
        """The layers of the settings, and the default layer."""
        return [self.default]

    def read(self, pixels: Tensor, layers: Sequence[FeatureLayer]) -> dict[FeatureLayer, Tensor]:
        """uint8 `(b, 3, h, w)` → float32 `(b, d)` for each layer."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Everything the features depend on besides the images, as JSON."""
        raise NotImplementedError


class EncoderReader(Reader):
    """The features of an encoder's blocks; of a network without patches, the last feature alone.

    The tokens of an earlier block go through the encoder's final norm, as the last block's do. The default layer is
    the feature of the timm model itself.
    """

    def __init__(self, encoder: Backbone) -> None:
        self.encoder = encoder
        blocks = getattr(encoder.model, "blocks", None) if isinstance(encoder, Encoder) else None
        self._blocks = list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
        self.default = FeatureLayer(max(len(self._blocks), 1), encoder.pool or "avg")

    def layers(self, settings: FeatureSettings) -> list[FeatureLayer]:
        """The layers of the settings, and the default layer; a ValueError for a block that the encoder lacks."""
        last = self.default.block
        if not isinstance(self.encoder, Encoder):
            return [self.default]
        blocks = {"last": (last,), "all": tuple(range(1, last + 1))}.get(str(settings.blocks), settings.blocks)
        if wrong := [block for block in blocks if int(block) > last]:
            raise ValueError(f"features.blocks {wrong[0]}: {self.encoder.name} has {last} blocks")
        has_token = getattr(self.encoder.vit, "cls_token", None) is not None  # registers are no class token
        pools = dict.fromkeys(settings.pools if has_token else ["avg"])
        layers = [FeatureLayer(int(block), pool) for block in sorted({*blocks, last}) for pool in pools]
        return list(dict.fromkeys([*layers, self.default]))

    def read(self, pixels: Tensor, layers: Sequence[FeatureLayer]) -> dict[FeatureLayer, Tensor]:
        """uint8 `(b, 3, h, w)` → float32 `(b, d)` for each layer; a ValueError if its block has no class token yet."""
        outputs: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for block in {layer.block for layer in layers} - {self.default.block}:
                handle = self._blocks[block - 1].register_forward_hook(
                    lambda module, args, output, block=block: outputs.update({block: output})
                )
                hooks.enter_context(handle)
            tokens = self.encoder(pixels)
        norm = getattr(self.encoder.model, "norm", nn.Identity())
        normed = {block: norm(output) for block, output in outputs.items()} | {self.default.block: tokens}
        return {layer: self._pooled(normed[layer.block], layer).float() for layer in layers}

    def _pooled(self, tokens: Tensor, layer: FeatureLayer) -> Tensor:
        if layer == self.default:
            return self.encoder.pooled(tokens)
        assert isinstance(self.encoder, Encoder)
        if layer.pool == "both":
            return torch.cat([self._pooled(tokens, layer._replace(pool=pool)) for pool in ("token", "avg")], dim=-1)
        prefix = tokens.shape[1] - self.encoder.num_patches
        if layer.pool == "token" and not prefix:
            raise ValueError(
                f"after block {layer.block} of {self.encoder.name} there is no class token yet; "
                "use features.pools=[avg] or features.blocks=last"
            )
        pooled = tokens[:, 0] if layer.pool == "token" else tokens[:, prefix:].mean(1)
        return self.encoder.vit.fc_norm(pooled) if hasattr(self.encoder.vit, "fc_norm") else pooled

    def identity(self) -> dict[str, Any]:
        """The architecture and a digest of its weights."""
        return {
            "name": self.encoder.name,
            "arguments": self.encoder.arguments,
            "mean": self.encoder.mean.tolist(),
            "std": self.encoder.std.tolist(),
            "weights": weights_digest(self.encoder.model.state_dict()),
        }


def extract(
    reader: Reader,
    crops: EvaluationCrops,
    rows: Numbers,
    layers: Sequence[FeatureLayer],
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int = 0,
    title: str = "",
) -> Features | None:
    """The features of some rows of labelled images, in their order; None in all processes but the main one.

    The rows are divided among the processes; `batch_size` is that of one process. A `title` shows a progress bar.

    Raises:
        TooManyDamagedError: when there is no good image near a damaged one.
    """
    processes = accelerator.num_processes
    each = -(-len(rows) // processes)
    mine = np.resize(rows, each * processes)[accelerator.process_index :: processes]  # the last may be repeated
    chunks = [mine[start : start + batch_size] for start in range(0, each, batch_size)]
    collected: dict[FeatureLayer, list[Tensor]] = {layer: [] for layer in layers}
    labels: list[Tensor] = []
    damaged: set[int] = set()
    silent = not (title and accelerator.is_main_process) or quiet()
    loader = batches(crops, chunks, workers=workers, pin=accelerator.device.type == "cuda")
    for loaded in tqdm(loader, total=len(chunks), desc=title, disable=silent, leave=False):
        batch = to_device(loaded, accelerator.device)
        damaged |= {row for row, _ in batch.damaged}
        with torch.no_grad(), accelerator.autocast():
            found = reader.read(batch.pixels, layers)
        for layer, value in found.items():
            collected[layer].append(_gathered(accelerator, value.float()))
        labels.append(_gathered(accelerator, batch.labels))
    if processes > 1:
        damaged = set(gather_object(list(damaged)))
    if not accelerator.is_main_process:
        return None
    values = {layer: torch.cat(parts)[: len(rows)] for layer, parts in collected.items()}
    return Features(values, torch.cat(labels)[: len(rows)], len(damaged))


def _gathered(accelerator: Accelerator, values: Any) -> Tensor:
    """All processes' values in the order of the rows, in main memory; empty in all processes but the main one."""
    if accelerator.num_processes > 1:
        values = accelerator.gather(values).unflatten(0, (accelerator.num_processes, -1))  # pyright: ignore
        values = values.transpose(0, 1).flatten(0, 1)
    return values.cpu() if accelerator.is_main_process else values[:0]


def _content(images: ImageTable, rows: Numbers) -> str:
    """A digest of the row numbers, their labels, and four of the images: reading all images would take too long."""
    digest = hashlib.sha256(f"{len(images)}".encode() + rows.tobytes())
    if images.labels is not None:
        digest.update(images.labels[rows].tobytes())
    for number in sorted({0, len(rows) // 3, len(rows) // 2, len(rows) - 1}):
        with suppress(ValueError, OSError):
            digest.update(images.encoded(int(rows[number])))
    return digest.hexdigest()


def cache_key(reader: Reader, crops: EvaluationCrops, rows: Numbers, arithmetic: list[str]) -> dict[str, Any]:
    """Everything that the features of some rows depend on: weights, images, crops, arithmetic."""
    settings = crops.settings
    return {
        "encoder": reader.identity(),
        "images": _content(crops.images.rows, rows),
        "crop": [settings.image_size, settings.crop_pct, settings.interpolation],
        "max_pixels": settings.max_pixels,  # decides which images a neighbour replaces
        "decoding": [settings.background, settings.bits, settings.decode],
        "arithmetic": arithmetic,
        "torch": torch.__version__,
    }


def kept(folder: Path, key: dict[str, Any], layers: Sequence[FeatureLayer]) -> Features | None:
    """The cached features of this key; None if a layer is missing or the file is damaged."""
    path = _path(folder, key)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            if weights_digest(tensors) != metadata["sha256"]:  # a flipped bit loads silently
                return None
            values = {layer: tensors[str(layer)] for layer in layers}
            return Features(values, tensors["labels"], int(metadata["damaged"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def keep(folder: Path, key: dict[str, Any], features: Features) -> None:
    """Cache features for `kept`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {str(layer): value.contiguous() for layer, value in features.values.items()}
    tensors["labels"] = features.labels
    metadata = {"key": json.dumps(key), "damaged": str(features.damaged), "sha256": weights_digest(tensors)}
    with replacing(_path(folder, key)) as path:
        save_file(tensors, path, metadata=metadata)


def _path(folder: Path, key: dict[str, Any]) -> Path:
    return folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.safetensors"
