"""timm's arguments: which describe a network, and which its regularisation, its weights or its use."""

from __future__ import annotations

from typing import Any

DROPOUT = frozenset(
    ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate")
)
"""Rates of regularisation; those of a source are set to 0."""
NOT_ARCHITECTURE = frozenset(
    ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes",
     "features_only", "out_indices", "scriptable", "exportable", "no_jit")
)  # fmt: skip
"""Arguments of `create_model` for the weights and the use of a network."""


def architecture_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a saved model that describe its architecture.

    timm itself saves the number of classes among them, and an image size as a pair.

    Raises:
        ValueError: if its images are not square, or not of three channels.
    """
    kept = {name: value for name, value in arguments.items() if name not in NOT_ARCHITECTURE}
    if kept.pop("in_chans", 3) != 3:
        raise ValueError(f"its images have {arguments['in_chans']} channels; only three are supported")
    size = kept.get("img_size")
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ValueError(f"its images are {' × '.join(map(str, size))} pixels; only square ones are supported")
        kept["img_size"] = size[0]
    return {name: 0.0 if name in DROPOUT else value for name, value in kept.items()}
