"""Classification with labels, behind the same interface as masked patch prediction."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mpp.encoder.vit import Encoder
from mpp.objective.heads import make_head
from mpp.objective.scores import Scores, total


class Classification(NamedTuple):
    """What classification gives for a batch."""

    loss: Tensor
    """Scalar float32: the mean over the images."""
    logits: Tensor
    """`(b, classes)`."""
    labels: Tensor
    """int64 `(b,)`."""


class SupervisedClassification(nn.Module):
    """A classifier on the encoder's pooled feature.

    Args:
        encoder: from `create_encoder` or `load_encoder`.
        num_classes: number of classes.
        head: `linear`, or `mlp` for two layers.
        label_smoothing: share of the probability that is spread over all classes.
    """

    def __init__(self, encoder: Encoder, num_classes: int, head: str = "linear", label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.label_smoothing = encoder, label_smoothing
        self.head = make_head(head, encoder.layout.width, num_classes)

    def forward(self, pixels: Tensor, samples: Tensor | None = None, labels: Tensor | None = None) -> Classification:
        """Features, prediction, loss.

        Args:
            pixels: uint8 `(b, 3, h, w)`.
            samples: not used; there so that every objective is called alike.
            labels: int64 `(b,)`.

        Raises:
            ValueError: without labels, and for float or wrongly shaped pixels.
        """
        if labels is None:
            raise ValueError("supervised classification needs labels")
        logits = self.head(self.encoder.pooled(self.encoder(pixels)))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        return Classification(loss, logits, labels)

    def scores(self, prediction: Classification, pixels: Tensor) -> Scores:
        """Sums over the images of a batch: right answers, and the loss without smoothing, as baselines have it."""
        losses = F.cross_entropy(prediction.logits.float(), prediction.labels, reduction="none")
        return {"loss": total(losses), "accuracy": total(prediction.logits.argmax(-1) == prediction.labels)}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Means of the scores as the journal shows them."""
        return means

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay: positions and tokens."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
