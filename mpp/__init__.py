"""Masked patch prediction: pre-train Vision Transformers without labels, and measure what that is worth.

The names below are imported when they are first used, so that `import mpp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpp.commands.scores import classify, scores
    from mpp.commands.train import train
    from mpp.data.inputs import image_files
    from mpp.encoder.create import create_encoder
    from mpp.encoder.export import save_encoder
    from mpp.encoder.load import load_encoder
    from mpp.evaluation.attention import attention_distance, attention_rollout
    from mpp.evaluation.embed import features
    from mpp.evaluation.few_shot import few_shot
    from mpp.hub.load import load_objective
    from mpp.objective.corruption import Corruption
    from mpp.objective.masked_patch import MaskedPatchPrediction
    from mpp.objective.targets import DownsizedPatch, FullPatch, MeanColor
    from mpp.recipe import load_recipe
    from mpp.study.statistics import compare, holm
    from mpp.training.reconstruction import reconstruct

__version__ = "0.1.0"
__all__ = [
    "Corruption",
    "DownsizedPatch",
    "FullPatch",
    "MaskedPatchPrediction",
    "MeanColor",
    "attention_distance",
    "attention_rollout",
    "classify",
    "compare",
    "create_encoder",
    "features",
    "few_shot",
    "holm",
    "image_files",
    "load_encoder",
    "load_objective",
    "load_recipe",
    "reconstruct",
    "save_encoder",
    "scores",
    "train",
]

_ROOMS = {
    "Corruption": "mpp.objective.corruption",
    "DownsizedPatch": "mpp.objective.targets",
    "FullPatch": "mpp.objective.targets",
    "MaskedPatchPrediction": "mpp.objective.masked_patch",
    "MeanColor": "mpp.objective.targets",
    "attention_distance": "mpp.evaluation.attention",
    "attention_rollout": "mpp.evaluation.attention",
    "classify": "mpp.commands.scores",
    "compare": "mpp.study.statistics",
    "create_encoder": "mpp.encoder.create",
    "features": "mpp.evaluation.embed",
    "few_shot": "mpp.evaluation.few_shot",
    "holm": "mpp.study.statistics",
    "image_files": "mpp.data.inputs",
    "load_encoder": "mpp.encoder.load",
    "load_objective": "mpp.hub.load",
    "load_recipe": "mpp.recipe",
    "reconstruct": "mpp.training.reconstruction",
    "save_encoder": "mpp.encoder.export",
    "scores": "mpp.commands.scores",
    "train": "mpp.commands.train",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'mpp' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return __all__
