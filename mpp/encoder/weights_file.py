"""Files of weights alone, such as MAE, BEiT or DINOv2 checkpoints, which do not name their architecture."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from mpp.encoder.local import PICKLES

NEVER = "a pickle, which can run code when it is read; convert it to safetensors"


def read_weights(path: Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    """The tensors of a file by their names there. A pickle is read without running its code, if that is allowed.

    Raises:
        ValueError: if it is a pickle and that is not allowed, or if it cannot be read.
    """
    pickled = path.name.endswith(PICKLES)
    if not pickled and path.suffix != ".safetensors":
        raise ValueError(f"{path} is no file of weights; expected .safetensors, or one of {', '.join(PICKLES)}")
    if pickled and not allow_pickle:
        raise ValueError(f"{path} is {NEVER}, or set encoder.allow_pickle=true if you trust it")
    try:
        with torch.serialization.safe_globals([Namespace]):  # MAE's keep the options of their run beside the weights
            found: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from error
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, but {', '.join(list(found)[:5]) or 'nothing'}")
    return tensors


def size_of(weights: dict[str, Tensor], prefix: int, patch_size: int) -> int | None:
    """The image size of learnt absolute positions, in pixels a side; None if there are none on a square."""
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return None
    for tokens in (positions.shape[1] - prefix, positions.shape[1]):
        if tokens > 0 and math.isqrt(tokens) ** 2 == tokens:
            return math.isqrt(tokens) * patch_size
    return None


def fill(model: nn.Module, weights: dict[str, Tensor], path: Path, name: str) -> None:
    """Load the weights of a file, without a head or a decoder, by timm's own filter of other projects' names.

    Raises:
        ValueError: if they are not of this architecture.
    """
    parameters = dict(model.named_parameters())
    fits = all(key in weights and weights[key].shape == value.shape for key, value in parameters.items())
    adapt: Any = None if fits else getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        adapted = adapt(weights, model) if adapt is not None else weights
        result = model.load_state_dict(adapted, strict=False)
    except (RuntimeError, KeyError, AttributeError, AssertionError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"the weights of {path} are not those of {name}: {reason[min(1, len(reason) - 1)]}") from error
    if missing := [key for key in result.missing_keys if key in parameters]:
        found = ", ".join(list(weights)[:3])
        raise ValueError(
            f"the weights of {path} are not those of {name}: {len(missing)} are missing, e.g. {missing[0]}; "
            f"there are {found} …"
        )
