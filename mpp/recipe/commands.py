"""The floor plan: what a recipe of each command can say, room by room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpp.data.settings import DataSettings, LabelSettings
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.settings import (
    Evaluator,
    FeatureSettings,
    FewShotSettings,
    InTrainingSettings,
    NeighbourSettings,
    ProbeSettings,
)
from mpp.objective.settings import ClassificationSettings, FineTuningSettings, ObjectiveSettings
from mpp.report.settings import ReconstructionSettings
from mpp.settings import Settings
from mpp.training.settings import (
    AugmentationSettings,
    CheckpointSettings,
    ComputeSettings,
    EarlyStoppingSettings,
    JournalSettings,
    OptimizerSettings,
    SearchSettings,
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
    evaluation: InTrainingSettings = InTrainingSettings()


class FinetuneRecipe(Settings):
    """Train a classifier from an encoder, or from scratch: `python -m mpp.finetune RECIPE encoder=runs/mine`."""

    command: Literal["finetune"]
    """The command that this recipe is for."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of every random draw: weights, order, crops, augmentation."""

    output_dir: str = Field(min_length=1)
    """The run's folder: classifier, encoder, results, checkpoints, metrics and this recipe, resolved."""

    data: DataSettings = DataSettings()
    labels: LabelSettings = LabelSettings()
    encoder: EncoderSettings = EncoderSettings()
    objective: ClassificationSettings = FineTuningSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    search: SearchSettings = SearchSettings()
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    journal: JournalSettings = JournalSettings()


class EvaluateRecipe(Settings):
    """Measure what an encoder's frozen features are worth: `python -m mpp.evaluate RECIPE encoder=runs/mine`."""

    command: Literal["evaluate"]
    """The command that this recipe is for."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of random weights, and of the held-out rows where the data has one split."""

    output_dir: str | None = Field(default=None, min_length=1)
    """Where features and results go; null takes `evaluation/` in the run that the encoder comes from, or
    `runs/evaluation/` and its name."""

    data: DataSettings = DataSettings()
    labels: LabelSettings = LabelSettings()
    encoder: EncoderSettings = EncoderSettings()
    features: FeatureSettings = FeatureSettings()

    few_shot: FewShotSettings | None = FewShotSettings()
    """null leaves it out."""

    knn: NeighbourSettings | None = NeighbourSettings()
    """null leaves it out."""

    linear_probe: ProbeSettings | None = ProbeSettings()
    """null leaves it out."""

    by_depth: tuple[Evaluator, ...] = ("few_shot", "knn")
    """Evaluators that are run at every block and pool on the dev split, and choose the best place by themselves;
    the others take the place that the last of these chose."""

    compute: ComputeSettings = ComputeSettings()


COMMANDS: dict[str, type[Settings]] = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
    "evaluate": EvaluateRecipe,
}
"""The schema that each `command:` names; the command itself is `python -m mpp.NAME`."""
