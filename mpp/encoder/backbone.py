"""The networks that are trained here: uint8 pixels in, one feature an image out."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Channels = tuple[float, ...]
HALF = (0.5, 0.5, 0.5)
"""The ViT paper's mean and std: pixels in [−1, 1]."""
POSITIONS_AND_TOKENS = ("pos_embed", "_token", "rel_pos_h", "rel_pos_w", "relative_position_bias")
"""Substrings of their names in timm; a network that computes positions (`rel_pos.mlp`) decays as others do."""


class Layout(NamedTuple):
    """The layout of an image's tokens: what an objective has to know about an architecture."""

    image_size: int
    """Pixels a side of the image."""
    grid: int
    """Tokens a side; N = grid²."""
    num_prefix_tokens: int
    """Tokens before the patches: class, distillation, registers."""
    width: int
    """d, the length of a token."""

    @property
    def patch_size(self) -> int:
        """P, pixels a side of the patch of one token (in a hybrid not the patch embedding's own size)."""
        return self.image_size // self.grid

    @property
    def num_patches(self) -> int:
        """N, patches of an image."""
        return self.grid**2


class Architecture(NamedTuple):
    """A timm architecture: name and arguments, pixels a side, the length d of a feature; no layout without patches."""

    name: str
    arguments: dict[str, Any]
    image_size: int
    width: int
    layout: Layout | None


class Backbone(nn.Module):
    """A timm model with its pixel normalisation, with or without patches: all that classification needs.

    Attributes:
        model: the timm model, its state-dict keys untouched; `model(x)` on normalised pixels gives pooled features.
        name, arguments, image_size, width: as in `Architecture`.
        pretrained_size: pixels a side that its weights were trained at before; `image_size` if there were none.
        mean, std: float32 `(3,)`, for pixels in [0, 1].
    """

    KEY: ClassVar[str] = "model"
    """The prefix of the timm model in state dicts."""

    arguments: dict[str, Any]
    model: Any  # timm's models share no type that says what they offer
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, architecture: Architecture, mean: Channels, std: Channels) -> None:
        super().__init__()
        self.add_module(self.KEY, model)
        self.name, self.arguments, self.image_size, self.width, _ = architecture
        self.pretrained_size = self.image_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    @property
    def pool(self) -> str:
        """How timm pools this model's last features into one; empty where it gives that no name."""
        for holder in (getattr(self.model, "head", None), self.model):
            pool = getattr(holder, "global_pool", None)
            pool = getattr(pool, "pool_type", pool)
            if isinstance(pool, str):
                return pool
        return ""

    @property
    def summary(self) -> str:
        """What this is, in a line."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        before = f" (made for {self.pretrained_size})" if self.pretrained_size != self.image_size else ""
        return f"{self.name}, {parameters:.1f} M parameters, {self.image_size} px{before}"

    def check(self, pixels: Tensor) -> None:
        """Refuse anything but uint8 pixels of this network's size, by a ValueError."""
        size = self.image_size
        if not isinstance(pixels, Tensor):
            found = type(pixels).__name__
            raise ValueError(f"pixels must be a torch tensor, found {found}: torch.from_numpy makes one")
        if pixels.dtype != torch.uint8:
            advice = "pass them as they were decoded, the encoder normalises them itself"
            raise ValueError(f"pixels must be uint8 in 0…255, found {pixels.dtype}: {advice}")
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size) or not len(pixels):
            raise ValueError(f"pixels must have the shape (b, 3, {size}, {size}), found {tuple(pixels.shape)}")

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 `(b, 3, h, w)` → `(pixels / 255 − mean) / std`, in torchvision's order of operations.

        Computed in float32, returned in the type of the model's weights.
        """
        normal = pixels.float().div_(255).sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return normal.to(next(self.model.parameters()).dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """timm's `forward_features` of uint8 `(b, 3, h, w)`: a map `(b, d, h', w')` or tokens, for `pooled`.

        Raises:
            ValueError: for float or wrongly shaped pixels.
        """
        self.check(pixels)
        return self.model.forward_features(self.normalize(pixels))

    def pooled(self, features: Tensor) -> Tensor:
        """The feature `(b, d)` of each image, pooled by timm: what `model(x)` returns."""
        return self.model.forward_head(features, pre_logits=True)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay: positions and tokens, timm's own list included."""
        listed = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        names = (name for name, _ in self.model.named_parameters())
        spared = {name for name in names if any(part in name for part in POSITIONS_AND_TOKENS)}
        return {f"{self.KEY}.{name}" for name in spared.union(listed)}

    def use_fused_attention(self, fused: bool) -> None:
        """Choose PyTorch's fused attention kernel, or plain matrix products."""
        for module in self.model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused

    def use_bfloat16_residual(self) -> None:
        """Under autocast, hand bfloat16 to the first block: all later sums of the residual stream are of that type.

        Raises:
            ValueError: if the model has no blocks.
        """
        blocks = getattr(self.model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
            raise ValueError(f"{self.name} has no transformer blocks in a row; set training.residual=float32")
        blocks[0].register_forward_pre_hook(_as_bfloat16)

    def use_gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass. The running statistics of batch norm see each batch twice.

        Raises:
            ValueError: if timm does not offer it for this architecture.
        """
        try:
            self.model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            advice = "set training.gradient_checkpointing=false"
            raise ValueError(f"timm has no gradient checkpointing for {self.name}; {advice}") from error


def _as_bfloat16(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    tokens, *rest = args
    return (tokens.to(torch.bfloat16), *rest) if torch.is_autocast_enabled(tokens.device.type) else None
