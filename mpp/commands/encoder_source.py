"""The encoder that a command loads: the size of its images, and what its user has to know about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate import Accelerator

from mpp.commands.data_summary import warn
from mpp.encoder.backbone import Backbone
from mpp.encoder.local import exported_folder
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.controls import MOST_PIXELS
from mpp.evaluation.settings import CONTROLS

Recipe = TypeVar("Recipe", bound=Any)


def with_own_size(recipe: Recipe, started_in: Path | None = None) -> Recipe:
    """The recipe with the image size of its network where it has none.

    `encoder.image_size` has then done its part and is dropped: runs of equal size have equal recipes.

    Args:
        recipe: of fine-tuning or evaluation.
        started_in: the folder of a run, which keeps the size that it started with.

    Raises:
        SettingError: if there is no such network.
    """
    encoder, size = recipe.encoder, recipe.data.image_size
    if size is None and started_in is not None:
        size = _size_of_run(started_in)
    if size is None:
        size = MOST_PIXELS if encoder.source in CONTROLS else encoder.own_size()
    changes = {
        "data": recipe.data.model_copy(update={"image_size": size}),
        "encoder": encoder.model_copy(update={"image_size": None}),
    }
    return recipe.model_copy(update=changes)


def _size_of_run(folder: Path) -> int | None:
    for path in (folder / "recipe.yaml", *sorted(folder.glob("search/*/recipe.yaml"))):
        if path.is_file():
            return (yaml.safe_load(path.read_text(encoding="utf-8")).get("data") or {}).get("image_size")
    return None


def warn_of_encoder(settings: EncoderSettings, encoder: Backbone, accelerator: Accelerator) -> None:
    """Warn, in the main process, of images of another size than the encoder's, and of unfinished training."""
    if not accelerator.is_main_process:
        return
    own, size = encoder.pretrained_size, encoder.image_size
    if size != own:
        warn(
            f"images of {size} px go into an encoder that was trained at {own} px: its positions are resized. Its own "
            f"size, data.image_size={own}, suits frozen features better"
        )
    if settings.source is not None and settings.pretrained:
        warn_if_unfinished(settings.source)


def warn_if_unfinished(source: str | Path) -> None:
    """Warn of a run whose latest checkpoint is not at its last step. Other sources, and lone exports, say nothing."""
    export = exported_folder(Path(source).expanduser())
    if export is None:
        return
    run = export.parent if export.name == "encoder" else export
    newest = max(run.glob("checkpoints/step-*/state.json"), default=None)
    try:
        state: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8")) if newest else {}
        unfinished = state["step"] < state["steps"] and not state["progress"].get("ended", False)
    except (OSError, ValueError, KeyError):
        return
    if unfinished:
        warn(f"{run} is at step {state['step']} of {state['steps']}: its training is not finished")
