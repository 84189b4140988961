"""An unmodified timm Vision Transformer whose patch embeddings can be edited before the position embedding."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from mpp.encoder.backbone import HALF, Architecture, Backbone, Channels

Edit = Callable[[Tensor], Tensor]


def norm_argument(vit: nn.Module) -> Parameter | None:
    """The argument of timm's class that puts the final norm before or after the pooling; None if it has none.

    Its default is None where that depends on the pooling.
    """
    for cls in type(vit).__mro__:
        taken = signature(cls.__init__).parameters
        for name in ("fc_norm", "use_fc_norm"):
            if name in taken:
                return taken[name]
    return None


class Encoder(Backbone):
    """A timm model whose patch embeddings can be edited, with its pixel normalisation.

    Attributes:
        vit: `model`; `layout`: the layout of its tokens; the others are those of `Backbone`.
    """

    KEY = "vit"
    vit: Any

    def __init__(self, vit: nn.Module, architecture: Architecture, mean: Channels, std: Channels) -> None:
        super().__init__(vit, architecture, mean, std)
        assert architecture.layout is not None
        self.layout = architecture.layout
        if (argument := norm_argument(vit)) is not None:  # or timm would move the norm with another pool
            after_pooling = not isinstance(getattr(vit, "fc_norm", None), nn.Identity)
            self.arguments = {**self.arguments, argument.name: after_pooling}
        self._edit: Edit | None = None
        # One hook for good, without effect outside `forward`. A bound method: a deep copy edits its own embeddings.
        self.vit.patch_embed.register_forward_hook(self._seam)

    @property
    def model(self) -> Any:
        """The timm model, by the name that every `Backbone` has for it."""
        return self.vit

    @property
    def num_patches(self) -> int:
        """N, patches of an image."""
        return self.layout.num_patches

    @property
    def patch_size(self) -> int:
        """P, pixels a side of the patch of one token."""
        return self.layout.patch_size

    @property
    def summary(self) -> str:
        """What this is, in a line."""
        return f"{super().summary}, patch {self.patch_size}: {self.num_patches} patches"

    def pool_patches(self) -> None:
        """Pool the mean of the patches from now on, if timm offers that for this model."""
        try:
            self.vit.reset_classifier(0, global_pool="avg")
        except AssertionError:  # e.g. distilled models, which read two tokens
            return
        if self.pool == "avg":
            self.arguments = self.arguments | {"global_pool": "avg"}

    def forward(self, pixels: Tensor, edit: Edit | None = None) -> Tensor:
        """timm's `forward_features`: uint8 `(b, 3, h, w)` → all tokens `(b, prefix + N, d)` after the final norm.

        `edit` is applied to the patch embeddings `(b, N, d)`, before the position embedding.

        Raises:
            ValueError: for float or wrongly shaped pixels.
        """
        self._edit = edit
        try:
            return super().forward(pixels)
        finally:
            self._edit = None

    def patch_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The tokens of some patches: `(b, prefix + N, d)` and int64 `(b, K)` → `(b, K, d)`.

        A final norm that comes after the pooling is applied to each of them.
        """
        images, count, width = tokens.shape
        first = torch.arange(images, device=tokens.device)[:, None] * count + self.layout.num_prefix_tokens
        chosen = tokens.reshape(-1, width).index_select(0, (positions + first).flatten()).view(images, -1, width)
        return self.vit.fc_norm(chosen) if hasattr(self.vit, "fc_norm") else chosen

    def _seam(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._edit is None:
            return None
        edited = self._edit(output.flatten(1, -2)).view_as(output)  # from (b, N, d) or (b, rows, columns, d)
        joins = self.layout.num_prefix_tokens > 0 and hasattr(self.vit, "_pos_embed")  # which copies all rows
        if output.is_contiguous() or joins:
            return edited
        # timm's embeddings are a transposed view, and kernels round by layout: it is kept for bitwise equality.
        return torch.empty_like(output).copy_(edited)


def network(model: nn.Module, architecture: Architecture, mean: Channels | None, std: Channels | None) -> Backbone:
    """The network around timm's model: an `Encoder` where it has patches."""
    kind = Backbone if architecture.layout is None else Encoder
    return kind(model, architecture, mean or HALF, std or HALF)
