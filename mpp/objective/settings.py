"""What the `objective:` part of a recipe can say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mpp.objective.corruption import Corruption
from mpp.objective.targets import MeanColor, Target
from mpp.settings import Settings


class MaskedPatchSettings(Settings):
    """Masked patch prediction: corrupt patch embeddings, predict what was there."""

    kind: Literal["masked_patch"] = "masked_patch"
    """Masked patch prediction, without labels."""

    head: Literal["linear", "mlp"] = "linear"
    """From an encoder's token to a prediction: one linear layer, or two with a GELU between them."""

    corruption: Corruption = Corruption()
    """Which patch embeddings are corrupted, and how."""

    target: Target = MeanColor()
    """What is predicted for each corrupted patch."""


class SupervisedSettings(Settings):
    """Classification with labels, for comparison."""

    kind: Literal["supervised"] = "supervised"
    """Classification of the data set's labels."""

    head: Literal["linear", "mlp"] = "linear"
    """From the pooled feature to the classes: one linear layer, or two with a GELU between them."""

    head_init: Literal["normal", "zero"] = "normal"
    """How the weights of the last layer begin; `zero` starts at uniform predictions."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the probability that is spread over all classes."""


ObjectiveSettings = Annotated[MaskedPatchSettings | SupervisedSettings, Field(discriminator="kind")]


class FineTuningSettings(SupervisedSettings):
    """Classification that trains the whole network."""

    head_init: Literal["normal", "zero"] = "zero"
    """How the weights of the last layer begin; `zero` starts at uniform predictions, as in the ViT paper."""


class LinearProbeSettings(Settings):
    """Linear probe: batch norm and one linear layer on features that do not learn, as in MAE."""

    kind: Literal["linear_probe"] = "linear_probe"
    """Classification that trains a linear layer alone."""

    block: int | None = Field(default=None, ge=1)
    """After which block features are taken, counted from 1: the blocks behind it are cut off, and its tokens go
    through the final norm. null takes the last one."""


ClassificationSettings = Annotated[FineTuningSettings | LinearProbeSettings, Field(discriminator="kind")]
"""What is trained with labels: the whole network, or a linear layer on top of it."""
