"""A whole objective back from what was pushed or trained: encoder, mask token and head."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import snapshot_download
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

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
        source: a run, a folder that `mpp push --folder` wrote, or `USER/NAME` or `USER/NAME@REVISION` on the Hub.
        revision: branch, tag or commit on the Hub.
        seed: of the corruptions; None takes the run's own.

    Raises:
        ValueError: if there is no such source, or it was not trained by masked patch prediction.
    """
    folder = _folder(source, revision)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    if recipe.get("command") == "finetune":
        raise ValueError(f"{source} is a classifier, not masked patch prediction; load_encoder gives its encoder")
    settings = TypeAdapter(ObjectiveSettings).validate_python(recipe["objective"])
    if settings.needs_labels:
        raise ValueError(f"{source} was trained by {settings.kind}, not by masked patch prediction")
    seed = int(recipe["seed"]) if seed is None else seed
    objective = settings.build(load_encoder(folder), num_classes=None, seed=seed)
    _, unexpected = objective.load_state_dict(_tensors(folder), strict=False)
    assert not unexpected, unexpected
    return objective


def take_parts(objective: Objective, source: str | Path) -> tuple[list[str], list[str]]:
    """Load the parts beside the encoder (mask token, head) that fit, from another objective on disk or on the Hub.

    Returns:
        The names of the parts that were taken, and of those that are left as they were.

    Raises:
        ValueError: if there is no such source.
    """
    saved, own = _tensors(_folder(source, None)), objective.state_dict()
    parts: dict[str, list[str]] = {}
    for name in own:
        if not name.startswith("encoder."):
            parts.setdefault(name.partition(".")[0], []).append(name)
    fitting = [
        part for part, names in parts.items() if all(n in saved and saved[n].shape == own[n].shape for n in names)
    ]
    objective.load_state_dict({name: saved[name] for part in fitting for name in parts[part]}, strict=False)
    return fitting, [part for part in parts if part not in fitting]


def _folder(source: str | Path, revision: str | None) -> Path:
    """The folder of a source, downloaded where it is none here. Raises ValueError if it holds no objective."""
    folder = Path(source).expanduser()
    if not folder.exists():
        name, _, pinned = str(source).partition("@")
        folder = _downloaded(name, revision or pinned or None)
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{source} holds no objective: recipe.yaml is missing")
    return folder


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of the last checkpoint of a run; of a pushed folder those beside the encoder."""
    if (folder / "objective.safetensors").is_file():
        return load_file(folder / "objective.safetensors")
    checkpoint = Checkpoints(folder / "checkpoints", 2).newest(print)
    if checkpoint is None:
        raise ValueError(f"{folder} holds no objective: there is no finished checkpoint in it")
    return load_file(checkpoint.folder / WEIGHTS)


def _downloaded(source: str, revision: str | None) -> Path:
    with hub_or_cache() as unreachable:
        try:
            return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
        except Exception as error:  # whatever the Hub and the network may raise
            raise ValueError(
                f"{source} is no folder here, and cannot be had from the Hugging Face Hub: "
                f"{unreachable or reason_of(error)}"
            ) from error
