"""The layers of a network from its input to its head, as layer-wise learning rates count them."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import group_parameters

from mpp.encoder.backbone import Backbone


def layers_of(backbone: Backbone) -> tuple[dict[str, int], int]:
    """timm's own count: by parameter name its layer, and the number of the head.

    0 is the embedding with positions and tokens, i the i-th block, L + 1 the head; the final norm goes with the last
    block, or where it stands behind the pooling with the head.

    Raises:
        ValueError: if timm does not know the layers of this architecture.
    """
    with torch.device("meta"):
        model: Any = timm.create_model(backbone.name, pretrained=False, num_classes=2, **backbone.arguments)
    if not hasattr(model, "group_matcher"):
        raise ValueError(f"timm does not know the layers of {backbone.name}; leave optimizer.layer_decay out")
    numbers: Any = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # pyright: ignore
    head = max(numbers.values())
    return {name: numbers.get(name, head) for name, _ in backbone.model.named_parameters()}, head
