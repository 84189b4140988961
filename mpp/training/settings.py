"""Settings of the training sections of a recipe: optimizer, training, validation, checkpoint, journal, …"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mpp.settings import Duration, Settings


class OptimizerSettings(Settings):
    """The optimiser and its learning rate, which is a function of the step alone."""

    name: str = "adamw"
    """Any optimiser of timm by name: adamw, sgd, lamb, lion, adafactor, …"""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate, before any scaling by batch size."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiply `lr` by batch_size / base_batch_size (linear), by its root (sqrt), or by nothing."""
    base_batch_size: int = Field(default=256, ge=1)
    """The batch size at which `lr` is meant, where it is scaled."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decay of the weights, but never of biases, norms, position embeddings and tokens."""
    betas: tuple[float, float] | None = None
    """Decay rates of the moments; null takes the optimiser's own, (0.9, 0.999) for Adam's family."""
    arguments: dict[str, Any] = {}
    """Further arguments of the optimiser, e.g. `{momentum: 0.9}`."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Layer-wise decay of the learning rate, for classification: the head learns at `lr`, every layer below at this
    share of the rate of the layer above; null has one rate for all."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up. `wsd` (warm-up, stable, decay) stays at the peak and falls
    linearly over the last `decay`. A run with `constant` or `wsd` can be made longer later: see `checkpoint.extend`."""
    decay: Duration | None = None
    """How long the fall of `wsd` takes, at the end of the run."""
    warmup: Duration = Duration(steps=0)
    """The learning rate rises linearly over this long."""
    final_lr: float = Field(default=0.0, ge=0, le=1)
    """Where the schedule ends, as a share of the peak."""

    @model_validator(mode="after")
    def _decays(self) -> OptimizerSettings:
        if (self.schedule == "wsd") != (self.decay is not None):
            raise ValueError(f"schedule {self.schedule} with decay {self.decay}: wsd needs a decay, others take none")
        return self

    @model_validator(mode="after")
    def _decouples(self) -> OptimizerSettings:
        if self.name == "adam" and self.weight_decay:
            raise ValueError(
                f"name adam with weight_decay {self.weight_decay:g} would mix the decay into the moments; use adamw, "
                "which decouples it, or set weight_decay to 0"
            )
        return self


class ComputeSettings(Settings):
    """How a network is run."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; `auto` is bfloat16 where the processor or GPU has instructions for it.
    Weights, optimiser and loss stay float32."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of each process on CPU; null shares the cores among the processes, or takes OMP_NUM_THREADS."""
    deterministic: bool = False
    """On GPUs: deterministic algorithms, so that a resumed run is bit for bit the same. CPU runs always are."""


class TrainingSettings(ComputeSettings):
    """The loop: batches, length, precision."""

    residual: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the sums between the blocks of a transformer, where `precision` is bfloat16: in bfloat16 a block
    reads and writes half as many bytes, and each sum is rounded."""

    batch_size: int = Field(default=256, ge=1)
    """Images of one optimiser step, over all processes."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Images that one process takes through the network at once; null takes its whole share of the batch.
    Gradients are accumulated, exactly."""
    duration: Duration = Duration(epochs=1)
    """Length of the run."""
    compile: bool = False
    """Compile the network with torch.compile, as one graph; needs a C++ compiler on CPU."""
    streams: int | None = Field(default=None, ge=1)
    """On CPUs: parts of a micro-batch that are computed side by side, each by an equal number of the threads. null
    takes one for each thread, of at least 8 images, where that changes nothing but rounding; 1 divides every operation
    among the threads."""
    clip_grad: float | None = Field(default=1.0, gt=0)
    """Largest global norm of the gradient; null does not clip."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    max_skipped: int = Field(default=10, ge=1)
    """The run stops after this many steps in a row whose loss or gradient is not finite (each is skipped)."""

    @field_validator("micro_batch_size")
    @classmethod
    def _divides(cls, micro_batch_size: int | None, others: ValidationInfo) -> int | None:
        batch_size = others.data.get("batch_size", 0)  # which is left out where it is itself wrong
        if micro_batch_size is not None and batch_size % micro_batch_size:
            raise ValueError(f"micro_batch_size {micro_batch_size} does not divide batch_size {batch_size}")
        return micro_batch_size


class ValidationSettings(Settings):
    """Validation on the held-out split during training."""

    every: Duration = Duration(steps=500)
    """How often; the end of the run counts too. 0 means only at the end."""
    images: int = Field(default=1000, ge=1)
    """Images of the held-out split that are used: a seeded choice."""
    baseline_images: int = Field(default=20000, ge=1)
    """Training images on which the two baselines (label frequencies, visible neighbours) are counted."""


class AugmentationSettings(Settings):
    """timm's augmentations of a batch in fine-tuning, on top of random crop and flip."""

    mixup: float = Field(default=0.0, ge=0)
    """α of mixup (Zhang et al. 2018); 0 does not mix."""
    cutmix: float = Field(default=0.0, ge=0)
    """α of CutMix (Yun et al. 2019); 0 does not cut. With both, each batch gets one of the two by chance."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle of an image is filled with noise (random erasing, Zhong et al. 2020)."""


class SearchSettings(Settings):
    """Grid search on the dev split: every combination is trained on the rest of train, as long as the run itself; the
    best is then trained on all of train.
    """

    lr: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Learning rates to choose from; empty takes `optimizer.lr`."""
    pool: tuple[Literal["token", "avg"], ...] = ()
    """Pools to choose from, each with its own learning rate; empty takes `encoder.pool`."""

    @property
    def is_asked_for(self) -> bool:
        """Whether there is anything to search."""
        return bool(self.lr or self.pool)


class EarlyStoppingSettings(Settings):
    """Early stopping by the accuracy on the dev split."""

    patience: int = Field(default=0, ge=0)
    """Validations in a row without improvement after which the run ends, and its best weights are tested and exported;
    0 trains to the end, and tests the last weights."""


class CheckpointSettings(Settings):
    """When the run is saved, and whether the same command resumes it."""

    every: Duration = Duration(steps=500)
    """How often; 0 means only at the end."""
    keep: int = Field(default=2, ge=2)
    """How many of the newest checkpoints stay on disk (the final one always does)."""
    extend: bool = False
    """Allow a longer `training.duration` than that of the run in the output folder, finished or stopped. With
    `optimizer.schedule` constant the run resumes at its latest checkpoint, with wsd at the last one before the decay.
    The result is the same, bit for bit, as that of a run with the longer duration from the start. Other schedules
    cannot be extended: every learning rate depends on the length."""
    resume: bool = True
    """Resume from the latest valid checkpoint in the output folder; false starts afresh and moves its files aside."""


class JournalSettings(Settings):
    """The metrics log."""

    every: Duration = Duration(steps=10)
    """How often a line is written to metrics.jsonl."""
    trackers: tuple[str, ...] = ()
    """Accelerate's trackers to write to as well: tensorboard, wandb, mlflow, …"""


class ReconstructionSettings(Settings):
    """Pictures of corrupted inputs and predictions."""

    every: Duration = Duration(steps=1000)
    """How often; the end of the run counts too. 0 means only at the end."""
    images: int = Field(default=8, ge=0)
    """Rows of the picture: images of the held-out split; 0 draws none."""
