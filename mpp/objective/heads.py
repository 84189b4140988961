"""From a token to a prediction."""

from __future__ import annotations

from torch import nn


def make_head(kind: str, width: int, outputs: int) -> nn.Module:
    """`linear`: one layer. `mlp`: two, with a GELU between them, the hidden one as wide as the token."""
    if kind not in ("linear", "mlp"):
        raise ValueError(f"head must be linear or mlp, found {kind!r}")
    layers: list[nn.Module] = [nn.Linear(width, outputs)]
    if kind == "mlp":
        layers = [nn.Linear(width, width), nn.GELU(), *layers]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
