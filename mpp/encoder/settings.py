"""What the `encoder:` part of a recipe can say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mpp.settings import Settings

Positive = Annotated[float, Field(gt=0)]


class EncoderSettings(Settings):
    """The Vision Transformer that is trained: any suitable timm model."""

    name: str = "vit_tiny_patch16_224"
    """The timm model, e.g. `vit_base_patch16_224`."""

    source: str | None = None
    """Start from these weights: a run, an exported encoder folder, or a timm name with pretrained weights
    (`timm:vit_base_patch16_224.mae`). Replaces `name`; null starts from random weights."""

    patch_size: int | None = Field(default=None, ge=1)
    """Side of a patch in pixels; null keeps the model's own."""

    pool: Literal["token", "avg"] | None = None
    """How tokens become one feature: the class token or the mean of the patches; null takes the class
    token where the model has one."""

    arguments: dict[str, Any] = {}
    """Further arguments of the timm model, e.g. `{depth: 6, embed_dim: 128, num_heads: 4}`."""

    mean: tuple[float, float, float] | None = None
    """Channel means that pixels in [0, 1] are normalised with; null takes the source's, or 0.5 without one."""

    std: tuple[Positive, Positive, Positive] | None = None
    """Channel standard deviations, likewise."""

    attention: Literal["auto", "fused", "plain"] = "auto"
    """Attention while training: PyTorch's fused kernel, or plain matrix products, which are faster on
    processors; `auto` is fused on GPUs only. The exported model is the same."""
