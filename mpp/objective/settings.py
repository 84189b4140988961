"""The `objective:` section of a recipe: the settings of each objective, which build its module.

A new objective is a module in a file of this room, a settings class here, and its name in `ObjectiveSettings`. Torch
is imported when something is built: recipes are read, and help is shown, without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mpp.encoder.local import check_source
from mpp.objective.corruption import Corruption
from mpp.objective.targets import MeanColor, Target
from mpp.settings import Settings, together

if TYPE_CHECKING:
    from mpp.encoder.backbone import Backbone, Layout
    from mpp.objective.base import Objective


class BaseObjectiveSettings(Settings):
    """The interface of all objectives before they are built."""

    needs_labels: ClassVar[bool] = False
    needs_patches: ClassVar[bool] = True
    """Whether the encoder must have patches; if not, it may be convolutional."""
    trains_class_token: ClassVar[bool] = True
    """Whether the class token has a loss. If not, a run without `encoder.pool` exports the mean of the patches."""
    tags: ClassVar[tuple[str, ...]] = ("self-supervised",)
    """Of a published model on the Hub."""
    has_layers: ClassVar[bool] = False
    """Whether all layers lead up to one head, so that learning rates can decay layer by layer."""

    source: str | None = None
    """Start from the whole of another run: its encoder, and of the rest (mask token, head) whatever fits. A run, a
    folder that `mpp push --folder` wrote, or `USER/NAME` on the Hub. `encoder.source` alone takes the encoder."""

    def check_paths(self) -> None:
        """Refuse a `source` that is not there, by a SettingError, from the names of files alone."""
        if self.source is not None:
            with self.blamed("source"):
                check_source(self.source)

    @property
    def description(self) -> str:
        """The end of the card's sentence "A model, pre-trained …"."""
        return f"by {type(self).__name__.removesuffix('Settings')}."

    def check(self, layout: Layout) -> None:
        """Raise a SettingError with all complaints if the objective does not fit these patches."""

    def pool_trained_tokens(self, encoder: Backbone) -> None:
        """Pool the mean of the patches if the class token has no loss: in exports, evaluation and fine-tuning."""
        from mpp.encoder.encoder import Encoder

        if not self.trains_class_token and isinstance(encoder, Encoder):
            encoder.pool_patches()

    def build(self, encoder: Backbone, *, num_classes: int | None, seed: int) -> Objective:
        """Build the module; its head is drawn from torch's generator, its corruptions from the seed.

        `num_classes` is None without labels.
        """
        raise NotImplementedError


class MaskedPatchSettings(BaseObjectiveSettings):
    """Masked patch prediction: corrupt patch embeddings, predict what was there."""

    kind: Literal["masked_patch"] = "masked_patch"
    """Masked patch prediction, without labels."""
    head: Literal["linear", "mlp"] = "linear"
    """From an encoder's token to a prediction: one linear layer, or two with a GELU between them."""
    corruption: Corruption = Corruption()
    """Which patch embeddings are corrupted, and how."""
    target: Target = MeanColor()
    """What is predicted for each corrupted patch."""
    trains_class_token: ClassVar[bool] = False
    tags: ClassVar[tuple[str, ...]] = ("masked-patch-prediction", "self-supervised")

    @property
    def description(self) -> str:
        """Names the corruption and the target."""
        return (
            f"without labels by masked patch prediction: {100 * self.corruption.fraction:g} % of the patch embeddings "
            f"are corrupted, and the model\npredicts for each of them {self.target.description} (Dosovitskiy et al. "
            "2021, appendix B.1.2)."
        )

    def check(self, layout: Layout) -> None:
        """Check the target and the corruption."""
        together(lambda: self.target.outputs(layout.patch_size), lambda: self.corruption.check(layout.num_patches))

    def build(self, encoder: Backbone, *, num_classes: int | None, seed: int) -> Objective:
        """Masked patch prediction on this encoder."""
        from mpp.objective.masked_patch import MaskedPatchPrediction

        return MaskedPatchPrediction(encoder, self.target, self.corruption, seed, self.head)


class SupervisedSettings(BaseObjectiveSettings):
    """Classification with labels, for comparison."""

    kind: Literal["supervised"] = "supervised"
    """Classification of the data set's labels."""
    head: Literal["linear", "mlp", "pre_logits"] = "linear"
    """From the pooled feature to the classes: one linear layer; `mlp`, two with a GELU between them; `pre_logits`, two
    with a tanh, as the ViT paper pre-trains."""
    head_init: Literal["normal", "zero"] = "normal"
    """How the weights of the last layer begin; `zero` starts at uniform predictions."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the probability that is spread over all classes."""
    needs_labels: ClassVar[bool] = True
    needs_patches: ClassVar[bool] = False
    has_layers: ClassVar[bool] = True
    tags: ClassVar[tuple[str, ...]] = ("supervised",)

    @property
    def description(self) -> str:
        """A constant."""
        return "with labels, for comparison with masked patch prediction."

    def build(self, encoder: Backbone, *, num_classes: int | None, seed: int) -> Objective:
        """A classifier on this encoder's pooled feature."""
        from mpp.objective.classification import SupervisedClassification

        assert num_classes is not None
        return SupervisedClassification(encoder, num_classes, self.head, self.label_smoothing, self.head_init)


ObjectiveSettings = Annotated[MaskedPatchSettings | SupervisedSettings, Field(discriminator="kind")]


class FineTuningSettings(SupervisedSettings):
    """Classification that trains the whole network."""

    head_init: Literal["normal", "zero"] = "zero"
    """How the weights of the last layer begin; `zero` starts at uniform predictions, as in the ViT paper."""


class LinearProbeSettings(BaseObjectiveSettings):
    """Linear probe: batch norm and one linear layer on features that do not learn, as in MAE."""

    kind: Literal["linear_probe"] = "linear_probe"
    """Classification that trains a linear layer alone."""
    block: int | None = Field(default=None, ge=1)
    """After which block features are taken, counted from 1: the blocks behind it are cut off, and its tokens go
    through the final norm. null takes the last one."""
    needs_labels: ClassVar[bool] = True
    needs_patches: ClassVar[bool] = False

    def build(self, encoder: Backbone, *, num_classes: int | None, seed: int) -> Objective:
        """A linear layer on this encoder, cut off after `block`; a SettingError if there is no such block."""
        from mpp.encoder.create import cut_after
        from mpp.objective.classification import LinearProbe

        assert num_classes is not None
        if self.block is not None:
            with self.blamed("block"):
                cut_after(encoder, self.block)
        return LinearProbe(encoder, num_classes)


ClassificationSettings = Annotated[FineTuningSettings | LinearProbeSettings, Field(discriminator="kind")]
"""Training with labels: of the whole network, or of a linear layer on top of it."""
