"""A whole objective back from what was pushed or trained: encoder, mask token and head."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import snapshot_download
from pydantic import TypeAdapter
from safetensors.torch import load_file

from mpp.data.hub_access import hub_or_cache
from mpp.encoder.load import load_encoder
from mpp.objective.base import Objective
from mpp.objective.settings import ObjectiveSettings
from mpp.redact import reason_of
from mpp.training.checkpoint import WEIGHTS, Checkpoints

FILES = ("config.json", "model.safetensors", "objective.safetensors", "recipe.yaml")


def load_objective(source: str | Path, *, revision: str | None = None, seed: int | None = None) -> Objective:
    """Masked patch prediction as it was trained, ready for reconstructions.

    Args:
        source: a run, a folder that `mpp.push --folder` wrote, or `USER/NAME` or `USER/NAME@REVISION` on the Hub.
        revision: branch, tag or commit on the Hub.
        seed: of the corruptions; None takes the run's own.

    Raises:
        ValueError: if there is no such source, or it was not trained by masked patch prediction.
    """
    folder = Path(source)
    if not folder.exists():
        name, _, pinned = str(source).partition("@")
        folder = _downloaded(name, revision or pinned or None)
    if missing := [name for name in ("recipe.yaml",) if not (folder / name).is_file()]:
        raise ValueError(f"{source} holds no objective: {', '.join(missing)} is missing")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    settings = TypeAdapter(ObjectiveSettings).validate_python(recipe["objective"])
    if settings.needs_labels:
        raise ValueError(f"{source} was trained by {settings.kind}, not by masked patch prediction")
    seed = int(recipe["seed"]) if seed is None else seed
    objective = settings.build(load_encoder(folder), num_classes=None, seed=seed)
    if (folder / "objective.safetensors").is_file():
        _, unexpected = objective.load_state_dict(load_file(folder / "objective.safetensors"), strict=False)
        assert not unexpected, unexpected
        return objective
    checkpoint = Checkpoints(folder / "checkpoints", 2).newest(print)
    if checkpoint is None:
        raise ValueError(f"{source} holds no objective: there is no finished checkpoint in it")
    objective.load_state_dict(load_file(checkpoint.folder / WEIGHTS))
    return objective


def _downloaded(source: str, revision: str | None) -> Path:
    with hub_or_cache() as unreachable:
        try:
            return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
        except Exception as error:  # whatever the Hub and the network may raise
            raise ValueError(
                f"{source} is no folder here, and cannot be had from the Hugging Face Hub: "
                f"{unreachable or reason_of(error)}"
            ) from error
