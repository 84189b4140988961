"""Classification with labels: on the pooled feature, or by a linear probe on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpp.encoder.backbone import Backbone
from mpp.encoder.probe import layers_of
from mpp.objective.base import Objective, Sample
from mpp.objective.baselines import label_baselines
from mpp.objective.heads import make_head
from mpp.objective.scores import Scores, total


class Classification(NamedTuple):
    """What classification returns for a batch."""

    loss: Tensor
    """Scalar float32: the mean over the images."""
    logits: Tensor
    """`(b, classes)`."""
    labels: Tensor
    """int64 `(b,)`, or where images were mixed their probabilities `(b, classes)`."""


class SupervisedClassification(Objective):
    """A classifier on the encoder's pooled feature.

    Args:
        encoder: from `create_encoder` or `load_encoder`, with or without patches.
        num_classes: number of classes.
        head: `linear`; or two layers, `mlp` with a GELU or `pre_logits` with a tanh between them.
        label_smoothing: share of the probability that is spread over all classes.
        head_init: of the last layer's weights: `normal`, or `zero` for uniform predictions at the start.
    """

    line: ClassVar[Mapping[str, str]] = {
        "loss": "loss {:.3f}",
        "accuracy": "acc {:.1%}",
        "histogram": "(frequencies {:.3f})",
    }

    def __init__(
        self,
        encoder: Backbone,
        num_classes: int,
        head: str = "linear",
        label_smoothing: float = 0.0,
        head_init: str = "normal",
    ) -> None:
        super().__init__()
        self.encoder, self.num_classes, self.label_smoothing = encoder, num_classes, label_smoothing
        self.head = make_head(head, encoder.width, num_classes)
        if head_init == "zero":
            last = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)

    def features(self, pixels: Tensor) -> Tensor:
        """The input of the head: uint8 `(b, 3, h, w)` → `(b, d)`."""
        return self.encoder.pooled(self.encoder(pixels))

    def forward(self, pixels: Tensor, samples: Tensor | None = None, labels: Tensor | None = None) -> Classification:
        """Features, prediction, loss; labels are int64 `(b,)` or probabilities `(b, classes)`, samples are not used.

        Raises:
            ValueError: without labels, and for float or wrongly shaped pixels.
        """
        if labels is None:
            raise ValueError("supervised classification needs labels")
        logits = self.head(self.features(pixels))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        return Classification(loss, logits, labels)

    def scores(self, prediction: Classification, pixels: Tensor) -> Scores:
        """Sums over a batch: correct predictions, and the loss without smoothing, as baselines have it."""
        losses = F.cross_entropy(prediction.logits.float(), prediction.labels, reduction="none")
        labels = prediction.labels.argmax(-1) if prediction.labels.ndim > 1 else prediction.labels
        return {"loss": total(losses), "accuracy": total(prediction.logits.argmax(-1) == labels)}

    @property
    def unit(self) -> str:
        """Of a cross-entropy."""
        return "nats"

    @property
    def words(self) -> dict[str, str]:
        """The loss, the accuracy, and the baseline."""
        return {
            "loss": "cross-entropy of the classes, nats",
            "acc": "share of images whose class is right",
            "frequencies": "loss of predicting how often each class occurs",
        }

    def baselines(self, train: Sample, validation: Sample) -> dict[str, float]:
        """The label frequencies of `train`, and chance."""
        assert train.labels is not None
        assert validation.labels is not None
        return label_baselines(train.labels, validation.labels, self.num_classes)

    def linear(self) -> tuple[Tensor, Tensor] | None:
        """Weight `(classes, d)` and bias `(classes,)` of the head; None for one of two layers."""
        return (self.head.weight, self.head.bias) if isinstance(self.head, nn.Linear) else None

    def layers(self) -> dict[str, int]:
        """The layer of each parameter by its name, 0 for the embedding; a ValueError if timm does not know them."""
        numbers, head = layers_of(self.encoder)
        prefix = f"encoder.{self.encoder.KEY}."
        return {name: numbers.get(name.removeprefix(prefix), head) for name, _ in self.named_parameters()}


class LinearProbe(SupervisedClassification):
    """A linear classifier on features that do not learn, as in MAE (He et al. 2022, A.2).

    Batch normalisation without scale and shift, then a linear layer, initialised with a deviation of 0.01.
    """

    def __init__(self, encoder: Backbone, num_classes: int) -> None:
        super().__init__(encoder, num_classes)
        linear = nn.Linear(encoder.width, num_classes)
        nn.init.trunc_normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.BatchNorm1d(encoder.width, affine=False, eps=1e-6), linear)
        encoder.requires_grad_(False)

    def features(self, pixels: Tensor) -> Tensor:
        """The input of the head: uint8 `(b, 3, h, w)` → `(b, d)`, without a gradient."""
        with torch.no_grad():
            return super().features(pixels)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight `(classes, d)` and bias `(classes,)` of the head, the normalisation folded in."""
        norm: Any
        norm, last = self.head
        weight = last.weight / (norm.running_var + norm.eps).sqrt()
        return weight, last.bias - weight @ norm.running_mean

    def train(self, mode: bool = True) -> LinearProbe:
        """Switch the head alone: the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self
