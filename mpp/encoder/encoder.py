"""The shared encoder: an unmodified timm Vision Transformer, opened at one seam.

Patch embeddings can be edited at the seam, after the patch embedding and before the position embedding, and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpp.encoder.backbone import Backbone

Edit = Callable[[Tensor], Tensor]


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


def norm_argument(vit: nn.Module) -> Parameter | None:
    """The argument of timm's class that places the final norm before or after the pooling; None if it has none.

    Its default is None where the place depends on the pooling.
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
        vit: the timm model, its state-dict keys untouched; `vit(x)` on normalised pixels gives pooled features.
        name: timm's name of the architecture.
        arguments: timm's arguments that build `vit` again.
        layout: the layout of the tokens.
        mean, std: float32 `(3,)`, for pixels in [0, 1].
    """

    KEY = "vit"
    vit: Any

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
        size, width = layout.image_size, layout.width
        if (argument := norm_argument(vit)) is not None:  # or timm would move the norm with another pool
            arguments = {**arguments, argument.name: not isinstance(getattr(vit, "fc_norm", None), nn.Identity)}
        super().__init__(vit, image_size=size, width=width, name=name, arguments=arguments, mean=mean, std=std)
        self.layout = layout
        self._edit: Edit | None = None
        # One hook for good, inert unless a forward of ours is under way; a bound method, so that a deep copy
        # opens its own seam and not its original's.
        self.embedding.register_forward_hook(self._seam)

    @property
    def model(self) -> Any:
        """The timm model, by the name that every `Backbone` has for it."""
        return self.vit

    @property
    def embedding(self) -> nn.Module:
        """timm's patch embedding."""
        module = self.vit.patch_embed
        assert isinstance(module, nn.Module)
        return module

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
        """Pool the mean of the patches from now on; where timm offers only other ways, the model keeps its own."""
        try:
            self.vit.reset_classifier(0, global_pool="avg")
        except AssertionError:  # e.g. distilled models, which read two tokens
            return
        if self.pool == "avg":
            self.arguments = self.arguments | {"global_pool": "avg"}

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
        self._edit = edit
        try:
            return super().forward(pixels)
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

    def _seam(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._edit is None:
            return None
        edited = self._edit(output.flatten(1, -2)).view_as(output)  # from (b, N, d) or (b, rows, columns, d)
        if output.is_contiguous():
            return edited
        # timm's embeddings are a transposed view, and kernels round by layout: keep it, to stay equal to the last bit.
        return torch.empty_like(output).copy_(edited)
