"""The bare network on disk, in the form that timm loads: `config.json` and `model.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder
from mpp.encoder.probe import skeleton
from mpp.files import replacing


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """A SHA-256 of the names, shapes, types and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def ends_of(name: str) -> dict[str, Any]:
    """timm's names of the first convolution and the classifier, which it needs to change input channels or the head."""
    config = timm.get_pretrained_cfg(name)
    return {key: getattr(config, key, None) for key in ("first_conv", "classifier")}


def timm_config(encoder: Backbone, *, interpolation: str, crop_pct: float) -> dict[str, Any]:
    """timm's `config.json` for this encoder.

    `num_classes` is not in `model_args`: transformers passes it by itself, and would pass it twice.
    """
    size = encoder.image_size
    return {
        "architecture": encoder.name,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": encoder.pool,
        "model_args": encoder.arguments,
        "pretrained_cfg": {
            "tag": "mpp",
            "custom_load": False,
            "input_size": [3, size, size],
            # timm hands the size to the constructor where this is set; a convolutional network takes none.
            "fixed_input_size": isinstance(encoder, Encoder) or "img_size" in encoder.arguments,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": encoder.mean.tolist(),
            "std": encoder.std.tolist(),
            "num_classes": 0,
            "pool_size": None,
            **ends_of(encoder.name),
        },
    }


def save_encoder(
    encoder: Backbone, folder: str | Path, *, interpolation: str = "bilinear", crop_pct: float = 1.0
) -> None:
    """Write what a run exports: `config.json` and `model.safetensors`, each replaced in one step.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` then gives the same features to the last bit, and so does
    `load_encoder`. What is pooled is the encoder's own, in a run by `pool_trained_tokens` of the objective's settings.
    The configuration never changes during a run, so a reader sees a whole export at any moment.

    Args:
        encoder: from `create_encoder` or `load_encoder`.
        folder: made if it does not exist; an earlier export in it is replaced.
        interpolation: how images are to be resized, for whoever loads it with timm.
        crop_pct: the share of the resized image that they are to be cropped to.
    """
    config = timm_config(encoder, interpolation=interpolation, crop_pct=crop_pct)
    _write(Path(folder).expanduser(), config, encoder.model.state_dict())


def export_classifier(
    encoder: Backbone,
    weight: Tensor,
    bias: Tensor,
    class_names: Sequence[str],
    folder: Path,
    *,
    interpolation: str = "bilinear",
    crop_pct: float = 1.0,
) -> None:
    """As `save_encoder`, with a linear head on the pooled feature: timm's `model(x)` gives logits.

    Args:
        encoder: the network.
        weight, bias: of the head, `(classes, d)` and `(classes,)`.
        class_names: in the order of the labels.
        folder, interpolation, crop_pct: as for `save_encoder`.
    """
    model = skeleton(encoder.name, encoder.arguments, num_classes=len(class_names))
    names = model.pretrained_cfg["classifier"]
    tensors = dict(encoder.model.state_dict())
    for name in (names,) if isinstance(names, str) else names:  # a distilled model has two, and takes their mean
        shape = model.get_submodule(name).weight.shape
        tensors |= {f"{name}.weight": weight.detach().reshape(shape), f"{name}.bias": bias.detach()}
    config = timm_config(encoder, interpolation=interpolation, crop_pct=crop_pct)
    config |= {"num_classes": len(class_names), "label_names": list(class_names)}
    config["pretrained_cfg"] |= {"num_classes": len(class_names), "classifier": names}
    _write(folder, config, tensors)


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Clones: two names may share a tensor, which safetensors does not take.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n")
    with replacing(folder / "model.safetensors") as path:
        save_file(plain, path, metadata={"format": "pt"})
