"""A fine-tuned classifier from disk or from the Hub, on pixels as they were decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mpp.encoder.local import expanded
from mpp.encoder.pretrained import open_source


class Classifier(nn.Module):
    """timm's model with its head, its pixel normalisation and the names of its classes.

    Args:
        source: a run of `mpp finetune`, its `classifier` folder, or `USER/NAME` on the Hub.

    Attributes:
        image_size: pixels a side.
        class_names: in the order of the logits.

    Raises:
        ValueError: if there is no such source, or it is no classifier.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: str | Path) -> None:
        super().__init__()
        source = expanded(source)
        inner = Path(source) / "classifier"
        found = open_source(inner if inner.is_dir() else source)
        model: Any = timm.create_model(found.origin, pretrained=True)
        names = model.pretrained_cfg.get("label_names") or map(str, range(model.num_classes))
        self.class_names: list[str] = list(names)
        if model.num_classes < 2:
            raise ValueError(f"{source} holds an encoder without classes; give a run of mpp finetune")
        self.model, self.image_size = model, found.input_size
        self.register_buffer("mean", torch.tensor(found.mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(found.std, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 `(b, 3, h, w)` → logits `(b, classes)`."""
        return self.model(pixels.float().div_(255).sub_(self.mean).div_(self.std))
