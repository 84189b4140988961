"""From a token to a prediction."""

from __future__ import annotations

from torch import nn

HIDDEN: dict[str, type[nn.Module] | None] = {"linear": None, "mlp": nn.GELU, "pre_logits": nn.Tanh}
"""The activation after the hidden layer, as wide as the token; `linear` has no hidden layer."""


def make_head(kind: str, width: int, outputs: int) -> nn.Module:
    """One layer, or two with an activation between them; `pre_logits` is the ViT paper's head (section 3.1)."""
    if kind not in HIDDEN:
        raise ValueError(f"head must be {', '.join(HIDDEN)}; found {kind!r}")
    activation = HIDDEN[kind]
    layers: list[nn.Module] = [nn.Linear(width, outputs)]
    if activation is not None:
        layers = [nn.Linear(width, width), activation(), *layers]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
