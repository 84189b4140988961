"""timm's mixup, CutMix and random erasing, on uint8 batches that are already on the device."""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from mpp.encoder.backbone import Backbone
from mpp.training.settings import AugmentationSettings


class Augmentation:
    """Augments uint8 pixels and labels; the result is uint8 pixels and labels.

    timm works on normalised pixels, so these are normalised, augmented, and converted back to uint8: encoders always
    get uint8, at a rounding of half a grey level, and the noise of erasing is clipped to 0…255. It draws from the
    generators of torch, NumPy and Python, which the trainer seeds by step and process.
    """

    def __init__(
        self, settings: AugmentationSettings, encoder: Backbone, num_classes: int, device: torch.device
    ) -> None:
        self.encoder = encoder
        self.mix: Mixup | None = None
        if settings.mixup or settings.cutmix:
            self.mix = Mixup(
                mixup_alpha=settings.mixup, cutmix_alpha=settings.cutmix, label_smoothing=0.0, num_classes=num_classes
            )
        self.erase = (
            RandomErasing(settings.erase, mode="pixel", device=str(device)) if settings.erase else None  # pyright: ignore
        )

    def check(self, micro_batch_size: int) -> None:
        """Raise a ValueError for batches that cannot be mixed: of an odd number of images."""
        if self.mix is not None and micro_batch_size % 2:
            raise ValueError(
                f"mixup and CutMix pair the images of a micro-batch, and {micro_batch_size} is odd; choose an even "
                "training.micro_batch_size, or set augmentation.mixup=0 augmentation.cutmix=0"
            )

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 `(b, 3, h, w)` and int64 `(b,)` → the same; labels of mixed images are probabilities `(b, classes)`."""
        images = self.encoder.normalize(pixels)
        if self.erase is not None:  # first, as in timm, whose loader erases and whose loop mixes
            images = self.erase(images)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        mean, std = self.encoder.mean[:, None, None], self.encoder.std[:, None, None]
        return (images * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8), labels


def augmentation(
    settings: AugmentationSettings, encoder: Backbone, num_classes: int, device: torch.device
) -> Augmentation | None:
    """The augmentation of a recipe; None if all are off."""
    if not (settings.mixup or settings.cutmix or settings.erase):
        return None
    return Augmentation(settings, encoder, num_classes, device)
