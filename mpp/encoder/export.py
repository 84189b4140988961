"""The bare encoder on disk, in the form that timm loads: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mpp.encoder.vit import Encoder
from mpp.files import replacing


def timm_config(encoder: Encoder, *, interpolation: str, crop_pct: float) -> dict[str, Any]:
    """timm's `config.json` for this encoder.

    `num_classes` stays out of `model_args`: transformers passes it by itself, and would pass it twice.
    """
    size = encoder.layout.image_size
    return {
        "architecture": encoder.name,
        "num_classes": 0,
        "num_features": encoder.layout.width,
        "global_pool": encoder.pool,
        "model_args": encoder.arguments,
        "pretrained_cfg": {
            "tag": "mpp",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": encoder.mean.tolist(),
            "std": encoder.std.tolist(),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": None,
            "classifier": None,
        },
    }


def export_encoder(encoder: Encoder, folder: Path, *, interpolation: str = "bilinear", crop_pct: float = 1.0) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, each replaced in one step.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` then gives the same features to the last bit. The
    configuration never changes during a run, so a reader sees a whole export at any moment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = timm_config(encoder, interpolation=interpolation, crop_pct=crop_pct)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.vit.state_dict().items()}
    with replacing(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n")
    with replacing(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
