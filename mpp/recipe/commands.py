"""The floor plan: what a recipe of each command can say, room by room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpp.data.settings import DataSettings
from mpp.encoder.settings import EncoderSettings
from mpp.objective.settings import ObjectiveSettings
from mpp.report.settings import ReconstructionSettings
from mpp.settings import Settings
from mpp.training.settings import (
    CheckpointSettings,
    JournalSettings,
    OptimizerSettings,
    TrainingSettings,
    ValidationSettings,
)


class PretrainRecipe(Settings):
    """Pre-train a Vision Transformer: `python -m mpp.pretrain RECIPE`."""

    command: Literal["pretrain"]
    """The command that this recipe is for."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of every random draw: weights, order, crops, corruption."""

    output_dir: str = Field(min_length=1)
    """The run's folder: encoder, checkpoints, metrics and this recipe, resolved."""

    data: DataSettings = DataSettings()
    encoder: EncoderSettings = EncoderSettings()
    objective: ObjectiveSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    journal: JournalSettings = JournalSettings()
    reconstructions: ReconstructionSettings = ReconstructionSettings()


COMMANDS: dict[str, type[PretrainRecipe]] = {"pretrain": PretrainRecipe}
"""The schema that each `command:` names; the command itself is `python -m mpp.NAME`."""
