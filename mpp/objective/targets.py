"""Prediction targets of a corrupted patch (ViT paper, appendix B.1.2).

Each class is at once the settings in a recipe (`target: {kind: mean_color, bits: 3}`) and the object that computes.
All labels come from the uint8 pixels that the encoder sees, before any normalisation. A new target is a `PatchTarget`
here and its name in `Target`.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from einops import rearrange
from pydantic import Field

from mpp.objective.patches import cell_edges, colour_classes, colour_classes_at, patchify, take, unpack
from mpp.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from mpp.objective.baselines import Corrupted


class PatchTarget(Settings):
    """The interface of all targets. Patches are uint8 `(b, K, P, P, 3)`, K the corrupted patches of an image."""

    description: ClassVar[str]
    """What is predicted of each patch, in words."""
    metric: ClassVar[str]
    """Name of what `summary` returns."""
    unit: ClassVar[str]
    """Of the loss."""
    words: ClassVar[dict[str, str]]
    """What the metric and the label frequencies mean, by their words on the terminal."""

    def outputs(self, patch_size: int) -> int:
        """Numbers predicted for a patch of `patch_size` pixels a side; a ValueError if the target does not fit it."""
        raise NotImplementedError

    def warn(self, patch_size: int) -> None:
        """Warn if the target is possible for such patches, but hardly meant."""

    def shape(self, outputs: Tensor) -> Tensor:
        """Head outputs `(b, K, outputs)` → logits."""
        return outputs

    def labels(self, patches: Tensor) -> Tensor:
        """The labels `(b, K, …)` of patches."""
        raise NotImplementedError

    def labels_at(self, pixels: Tensor, positions: Tensor, patch_size: int) -> Tensor:
        """`labels` of the patches at int64 `(b, K)` of uint8 pixels `(b, 3, h, w)`."""
        return self.labels(take(patchify(pixels, patch_size), positions))

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each patch, float32 `(b, K)`."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over all corrupted patches, a float32 scalar."""
        return self.losses(logits, labels).mean()

    def errors(self, logits: Tensor, labels: Tensor, patches: Tensor) -> Tensor:
        """The error of each patch, float32 `(b, K)`, whose mean `summary` converts."""
        raise NotImplementedError

    def summary(self, error: float) -> float:
        """The metric from a mean error."""
        raise NotImplementedError

    def baselines(self, train: Corrupted, validation: Corrupted, patch_size: int) -> dict[str, float]:
        """The losses on `validation`, by name, of predictions without a network, counted on `train`."""
        raise NotImplementedError

    def picture(self, logits: Tensor, patches: Tensor) -> Tensor:
        """The prediction as pixels, float32 `(b, K, P, P, 3)` in [0, 1]; `patches` are the true ones."""
        raise NotImplementedError


class _Colours(PatchTarget):
    """Quantised colours: each of `cells` × `cells` cells of a patch is one of `8**bits` classes."""

    bits: int = Field(default=3, ge=1, le=4)
    """Bits a channel; 3 make 512 colours."""
    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "nats"
    words: ClassVar[dict[str, str]] = {
        "acc": "share of corrupted patches whose colour class is right",
        "frequencies": "loss of predicting how often each colour occurs",
    }
    if TYPE_CHECKING:  # a real attribute would be shadowed by the setting of `DownsizedPatch`
        cells: ClassVar[int]

    @property
    def classes(self) -> int:
        """Number of colours, `8**bits`."""
        return 1 << (3 * self.bits)

    def outputs(self, patch_size: int) -> int:
        """`cells² · 8**bits`; a SettingError if there are more cells than pixels."""
        with self.blamed("cells"):
            return len(cell_edges(patch_size, self.cells)) ** 2 * self.classes

    def labels(self, patches: Tensor) -> Tensor:
        """int64 `(b, K, cells²)`, cells row by row."""
        return colour_classes(patches, self.cells, self.bits)

    def labels_at(self, pixels: Tensor, positions: Tensor, patch_size: int) -> Tensor:
        """The same as `labels`; much faster where the cells are of equal size."""
        if patch_size % self.cells:
            return super().labels_at(pixels, positions, patch_size)
        return colour_classes_at(pixels, positions, patch_size, self.cells, self.bits)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats, averaged over the cells of a patch: float32 `(b, K)`."""
        import torch.nn.functional as F

        losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none")
        return losses.view(*labels.shape[:2], -1).mean(-1)

    def errors(self, logits: Tensor, labels: Tensor, patches: Tensor) -> Tensor:
        """Share of wrong cells of each patch: float32 `(b, K)`."""
        return (logits.argmax(-1) != labels).float().view(*labels.shape[:2], -1).mean(-1)

    def summary(self, error: float) -> float:
        """Accuracy (per cell) from a mean error."""
        return 1 - error

    def baselines(self, train: Corrupted, validation: Corrupted, patch_size: int) -> dict[str, float]:
        """Cross-entropies in nats of the label frequencies, and of those given the visible neighbours' colour."""
        from mpp.objective.baselines import colour_baselines

        return colour_baselines(train, validation, patch_size=patch_size, bits=self.bits, cells=self.cells**2)

    def picture(self, logits: Tensor, patches: Tensor) -> Tensor:
        """Tiles of the likeliest colours: float32 `(b, K, P, P, 3)` in [0, 1]."""
        import torch

        side = patches.shape[2]
        nearest = torch.arange(side, device=logits.device) * self.cells // side
        classes = logits.argmax(-1).reshape(*patches.shape[:2], self.cells, self.cells)
        return unpack(classes, self.bits)[:, :, nearest][:, :, :, nearest]


class MeanColor(_Colours):
    """The mean colour of the patch: one of 512 classes at 3 bits a channel."""

    kind: Literal["mean_color"] = "mean_color"
    """Predict the mean colour of each corrupted patch."""
    description: ClassVar[str] = "its mean colour"
    cells: ClassVar[int] = 1

    def labels(self, patches: Tensor) -> Tensor:
        """int64 `(b, K)`."""
        return super().labels(patches).squeeze(-1)

    def labels_at(self, pixels: Tensor, positions: Tensor, patch_size: int) -> Tensor:
        """int64 `(b, K)`."""
        return super().labels_at(pixels, positions, patch_size).squeeze(-1)


class DownsizedPatch(_Colours):
    """The patch downsized to 4×4 cells: 16 colours, predicted in parallel."""

    kind: Literal["downsized"] = "downsized"
    """Predict the colours of the patch downsized to a few cells."""
    cells: int = Field(default=4, ge=1)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Cells along a side of the patch."""
    description: ClassVar[str] = "its downsized colours"

    def warn(self, patch_size: int) -> None:
        """Warn if nothing is downsized."""
        if self.cells == patch_size:
            warnings.warn(
                f"target: {self.cells} × {self.cells} cells of a patch of {patch_size} pixels a side are its pixels: "
                "nothing is downsized; use fewer cells or a larger patch size",
                stacklevel=2,
            )

    def shape(self, outputs: Tensor) -> Tensor:
        """Head outputs `(b, K, cells²·8^bits)` → logits `(b, K, cells², 8^bits)`."""
        return rearrange(outputs, "b k (s c) -> b k s c", c=self.classes)


class FullPatch(PatchTarget):
    """The pixels of the patch, by L2 regression on the 3 RGB channels."""

    kind: Literal["full_patch"] = "full_patch"
    """Predict the pixels of each corrupted patch."""
    normalize: bool = False
    """Normalise the pixels of each patch to mean 0 and variance 1, as in MAE."""
    description: ClassVar[str] = "its pixels"
    metric: ClassVar[str] = "psnr"
    unit: ClassVar[str] = "squared error"
    words: ClassVar[dict[str, str]] = {
        "dB": "PSNR of the predicted pixels",
        "frequencies": "loss of predicting the mean patch",
    }

    def outputs(self, patch_size: int) -> int:
        """`3 · P²`."""
        return 3 * patch_size**2

    def labels(self, patches: Tensor) -> Tensor:
        """float32 `(b, K, 3·P²)`, ordered (row column channel).

        In [0, 1]; with `normalize`, of mean 0 and (sample) variance 1 in each patch.
        """
        values = patches.flatten(2).float() / 255
        if not self.normalize:
            return values
        mean, deviation = _moments(values)
        return (values - mean) / deviation

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error over the values of a patch: float32 `(b, K)`."""
        return (logits.float() - labels).square().mean(-1)

    def errors(self, logits: Tensor, labels: Tensor, patches: Tensor) -> Tensor:
        """Mean squared error of the clipped pixels of each patch: float32 `(b, K)`."""
        return (self.picture(logits, patches) - patches.float() / 255).square().mean((-1, -2, -3))

    def summary(self, error: float) -> float:
        """PSNR in dB from a mean squared error of values in [0, 1]."""
        return -10 * math.log10(max(error, 1e-12))

    def baselines(self, train: Corrupted, validation: Corrupted, patch_size: int) -> dict[str, float]:
        """Squared errors of the mean training patch and of the visible neighbours' colour; normalised, of the first."""
        from mpp.objective.baselines import pixel_baselines

        return pixel_baselines(train, validation, patch_size=patch_size, neighbours=not self.normalize)

    def picture(self, logits: Tensor, patches: Tensor) -> Tensor:
        """The predicted pixels, clipped; with `normalize`, mean and deviation are the true patch's, as MAE shows it."""
        values = logits.float()
        if self.normalize:
            mean, deviation = _moments(patches.flatten(2).float() / 255)
            values = values * deviation + mean
        return values.clamp(0, 1).reshape(patches.shape)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and `√(sample variance + 1e-6)` of each patch, as in MAE."""
    return values.mean(-1, keepdim=True), (values.var(-1, keepdim=True) + 1e-6).sqrt()


Target = Annotated[MeanColor | DownsizedPatch | FullPatch, Field(discriminator="kind")]
