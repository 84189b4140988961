"""The shared encoder: an unmodified timm Vision Transformer, opened at one seam.

Pixels come in as uint8 and are normalised at the door. Patch embeddings can be edited at the seam, after the
patch embedding and before the position embedding, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]
POSITIONS_AND_TOKENS = ("pos_embed", "_token", "rel_pos", "relative_position_bias")


class Layout(NamedTuple):
    """Where the tokens of an image stand: what an objective has to know about an architecture."""

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
        """P, pixels a side of what one token stands for (in a hybrid not the patch embedding's own size)."""
        return self.image_size // self.grid


class Encoder(nn.Module):
    """A timm model whose patch embeddings can be edited, with its pixel normalisation.

    Attributes:
        vit: the timm model, its state-dict keys untouched; `vit(x)` on normalised pixels gives pooled features.
        name: timm's name of the architecture.
        arguments: timm's arguments that build `vit` again.
        layout: where the tokens stand.
        mean, std: float32 `(3,)`, for pixels in [0, 1].
    """

    vit: Any  # timm's models share no type that says what they offer
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: nn.Module,
        layout: Layout,
        *,
        name: str,
        arguments: dict[str, Any],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.vit, self.layout, self.name, self.arguments = vit, layout, name, arguments
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        self._edit: Edit | None = None
        # One hook for good, inert unless a forward of ours is under way; a bound method, so that a deep copy
        # opens its own seam and not its original's.
        self.embedding.register_forward_hook(self._seam)

    @property
    def embedding(self) -> nn.Module:
        """timm's patch embedding."""
        module = self.vit.patch_embed
        assert isinstance(module, nn.Module)
        return module

    @property
    def pool(self) -> str:
        """How timm pools the tokens of this model into one feature."""
        return str(self.vit.global_pool)

    @property
    def num_patches(self) -> int:
        """N, patches of an image."""
        return self.layout.grid**2

    @property
    def patch_size(self) -> int:
        """P, pixels a side of what one token stands for."""
        return self.layout.patch_size

    def check(self, pixels: Tensor) -> None:
        """Refuse anything but uint8 pixels of this encoder's size.

        Raises:
            ValueError: with what was found and what was expected.
        """
        size = self.layout.image_size
        if pixels.dtype != torch.uint8:
            raise ValueError(
                f"pixels must be uint8 in 0…255, found {pixels.dtype}: pass them as they were decoded, "
                "the encoder normalises them itself"
            )
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise ValueError(f"pixels must have the shape (b, 3, {size}, {size}), found {tuple(pixels.shape)}")

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 `(b, 3, h, w)` → float32 `(pixels / 255 − mean) / std`, in torchvision's order of operations."""
        return pixels.float().div_(255).sub_(self.mean[:, None, None]).div_(self.std[:, None, None])

    def forward(self, pixels: Tensor, edit: Edit | None = None) -> Tensor:
        """All tokens after the last block and norm, as timm's `forward_features` gives them.

        Args:
            pixels: uint8 `(b, 3, h, w)`.
            edit: applied to the patch embeddings `(b, N, d)`, before the position embedding.

        Returns:
            `(b, prefix + N, d)`.

        Raises:
            ValueError: for float or wrongly shaped pixels.
        """
        self.check(pixels)
        self._edit = edit
        try:
            return self.vit.forward_features(self.normalize(pixels))
        finally:
            self._edit = None

    def patch_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The tokens of some patches: `(b, prefix + N, d)` and int64 `(b, K)` → `(b, K, d)`.

        Where an architecture has its final norm behind the pooling, each token goes through it here.
        """
        images, count, width = tokens.shape
        first = torch.arange(images, device=tokens.device)[:, None] * count + self.layout.num_prefix_tokens
        chosen = tokens.reshape(-1, width).index_select(0, (positions + first).flatten()).view(images, -1, width)
        return self.vit.fc_norm(chosen) if hasattr(self.vit, "fc_norm") else chosen

    def pooled(self, tokens: Tensor) -> Tensor:
        """The feature `(b, d)` of each image, pooled by timm itself: what `vit(x)` returns."""
        return self.vit.forward_head(tokens, pre_logits=True)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay: positions and tokens, timm's own list included."""
        listed = self.vit.no_weight_decay() if hasattr(self.vit, "no_weight_decay") else ()
        spared = {name for name, _ in self.vit.named_parameters() if any(part in name for part in POSITIONS_AND_TOKENS)}
        return {f"vit.{name}" for name in spared.union(listed)}

    def use_fused_attention(self, fused: bool) -> None:
        """Choose PyTorch's fused attention kernel, or plain matrix products; the weights are the same."""
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused

    def _seam(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._edit is None:
            return None
        edited = self._edit(output.flatten(1, -2)).view_as(output)  # from (b, N, d) or (b, rows, columns, d)
        if output.is_contiguous():
            return edited
        # timm's embeddings are a transposed view, and kernels round by layout: keep it, to stay equal to the last bit.
        return torch.empty_like(output).copy_(edited)
