"""What the `encoder:` part of a recipe can say."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mpp.settings import Settings

Positive = Annotated[float, Field(gt=0)]
DROPOUT = frozenset(
    ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate")
)
"""timm's arguments that say how a network is regularised, not what it is; those of a source are not kept."""


class EncoderSettings(Settings):
    """The network that is trained: any suitable timm Vision Transformer; for classification any timm model."""

    shorthand: ClassVar[str | None] = "source"

    name: str = "vit_tiny_patch16_224"
    """The timm model, e.g. `vit_base_patch16_224`. Supervised classification trains networks without patches too,
    e.g. `resnet50`; their batch norm, if any, looks at the images of one micro-batch in one process."""

    source: str | None = None
    """Start from these weights: a run, an exported encoder folder, `USER/NAME` or `USER/NAME@REVISION` on the Hugging
    Face Hub, or a timm name with pretrained weights (`timm:vit_base_patch16_224.mae`). `name`, `patch_size` and
    `arguments` describe the network without a source: with one they are the source's own. Or a file of weights alone
    (`mae.safetensors`), which `name`, `patch_size`, `arguments`, `mean` and `std` describe. null starts from random
    weights."""

    allow_pickle: bool = False
    """Read `source` where its weights are pickled too (`.pth`, `.bin`). Only tensors are taken from them, but no
    reader of pickles is proof against all malice."""

    pretrained: bool = True
    """false takes the architecture of `source` alone, and random weights."""

    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """Rate of stochastic depth in training, rising to this at the last block; null leaves it to timm and
    `arguments`."""

    resize: Literal["bilinear", "bicubic", "timm"] = "bilinear"
    """How the learnt absolute position embeddings of a `source` are brought to another image size: `bilinear` in two
    dimensions with the corners aligned, as in the ViT paper's code; `bicubic` as in MAE's; `timm` is bicubic and
    antialiased. Relative and rotary positions go timm's own way whatever this says."""

    patch_size: int | None = Field(default=None, ge=1)
    """Side of a patch in pixels; null keeps the model's own. A network without patches takes null only."""

    pool: Literal["token", "avg"] | None = None
    """How tokens become one feature: the class token or the mean of the patches. null takes what the objective trains:
    in masked patch prediction the mean of the patches, which is also what the run exports (distilled models keep their
    own pooling). Elsewhere null takes the source's own pooling, or without a source the class token where the model
    has one. A network without patches takes `avg`, or null for timm's own pooling."""

    arguments: dict[str, Any] = {}
    """Further arguments of the timm model, e.g. `{depth: 6, embed_dim: 128, num_heads: 4}`."""

    mean: tuple[float, float, float] | None = None
    """Channel means that pixels in [0, 1] are normalised with; null takes the source's, or 0.5 without one."""

    std: tuple[Positive, Positive, Positive] | None = None
    """Channel standard deviations, likewise."""

    attention: Literal["auto", "fused", "plain"] = "auto"
    """Attention while training: PyTorch's fused kernel, or plain matrix products, which are faster on
    processors; `auto` is fused on GPUs only. The exported model is the same."""
