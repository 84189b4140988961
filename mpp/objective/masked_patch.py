"""Masked patch prediction (ViT paper, section 4.6 and appendix B.1.2) as one module."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mpp import randomness
from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder
from mpp.objective.corruption import KEEP, MASK, SWAP, Corruption, corrupt
from mpp.objective.heads import make_head
from mpp.objective.patches import patchify
from mpp.objective.scores import Scores, total
from mpp.objective.targets import DownsizedPatch, FullPatch, MeanColor, Target


class Prediction(NamedTuple):
    """What masked patch prediction gives for a batch."""

    loss: Tensor
    """Scalar float32: the mean over all corrupted patches."""
    logits: Tensor
    """`(b, K, 8^bits)` for mean colours, `(b, K, cells², 8^bits)` downsized, `(b, K, 3·P²)` for full patches."""
    labels: Tensor
    """`(b, K)`, `(b, K, cells²)` int64, or `(b, K, 3·P²)` float32."""
    positions: Tensor
    """int64 `(b, K)`, ascending: the corrupted patches."""
    kinds: Tensor
    """int64 `(b, K)`: 0 mask, 1 swap, 2 keep."""


class MaskedPatchPrediction(nn.Module):
    """Corrupt half of the patch embeddings; predict each corrupted patch from its own final token.

    Args:
        encoder: from `create_encoder` or `load_encoder`.
        target: what is predicted: `MeanColor()`, `DownsizedPatch()` or `FullPatch()`.
        corruption: which embeddings are corrupted, and how.
        seed: with the sample numbers it decides every corruption.
        head: `linear`, or `mlp` for two layers.

    Raises:
        ValueError: if the encoder has no patches, or target or corruption do not fit them.
    """

    trains_class_token: ClassVar[bool] = False
    """Only the tokens of patches have a loss: what is exported pools these, unless the recipe says otherwise."""

    def __init__(
        self,
        encoder: Backbone,
        target: Target | None = None,
        corruption: Corruption | None = None,
        seed: int = 0,
        head: str = "linear",
    ) -> None:
        super().__init__()
        if not isinstance(encoder, Backbone):
            raise ValueError(
                f"encoder must come from mpp.create_encoder or mpp.load_encoder, found {type(encoder).__name__}"
            )
        if not isinstance(encoder, Encoder):
            raise ValueError(
                f"masked patch prediction needs patches, and {encoder.name} has none; "
                "use a Vision Transformer, e.g. vit_tiny_patch16_224"
            )
        self.encoder = encoder
        self.target = MeanColor() if target is None else target
        self.corruption = Corruption() if corruption is None else corruption
        if not isinstance(self.target, MeanColor | DownsizedPatch | FullPatch):
            raise ValueError(f"target must be MeanColor(), DownsizedPatch() or FullPatch(), found {target!r}")
        if not isinstance(self.corruption, Corruption):
            raise ValueError(f"corruption must be a Corruption(), found {corruption!r}")
        self.corruption.check(encoder.num_patches)
        self.key = randomness.key(seed, "corruption")
        self.head = make_head(head, encoder.layout.width, self.target.outputs(encoder.patch_size))
        self.mask_token = nn.Parameter(torch.empty(encoder.layout.width))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, pixels: Tensor, samples: Tensor | None = None, labels: Tensor | None = None) -> Prediction:
        """Embeddings, corruption, prediction, loss.

        Args:
            pixels: uint8 `(b, 3, h, w)`.
            samples: int64 `(b,)` sample numbers, which decide the corruption; None draws from torch's generator.
            labels: not used; there so that every objective is called alike.

        Raises:
            ValueError: for float or wrongly shaped pixels.
        """
        self.encoder.check(pixels)
        if samples is not None:
            samples = torch.as_tensor(samples, device=pixels.device)
        if samples is not None and (samples.is_floating_point() or samples.is_complex()):
            raise ValueError(f"sample numbers must be integers, found {samples.dtype}")
        if samples is not None and samples.shape != pixels.shape[:1]:
            raise ValueError(f"{len(pixels)} images need as many sample numbers, found {tuple(samples.shape)}")
        if samples is None:
            samples = torch.randint(2**62, pixels.shape[:1], device=pixels.device)
        draw = self.corruption.draw(self.key, samples, self.encoder.num_patches)
        tokens = self.encoder(pixels, edit=partial(corrupt, mask_token=self.mask_token, draw=draw))
        logits = self.target.shape(self.head(self.encoder.patch_tokens(tokens, draw.positions)))
        truth = self.target.labels(self.patches(pixels, draw.positions))
        return Prediction(self.target.loss(logits, truth), logits, truth, draw.positions, draw.kinds)

    def patches(self, pixels: Tensor, positions: Tensor) -> Tensor:
        """The pixels of some patches: uint8 `(b, K, P, P, 3)`."""
        patches = patchify(pixels, self.encoder.patch_size)
        images, count, *shape = patches.shape
        rows = positions + torch.arange(images, device=positions.device)[:, None] * count
        return patches.reshape(images * count, -1).index_select(0, rows.flatten()).view(images, -1, *shape)

    def scores(self, prediction: Prediction, pixels: Tensor) -> Scores:
        """Sums over the corrupted patches of a batch: the loss, by kind of corruption too, and the errors."""
        losses = self.target.losses(prediction.logits, prediction.labels)
        errors = self.target.errors(prediction.logits, prediction.labels, self.patches(pixels, prediction.positions))
        kinds = {"loss_mask": MASK, "loss_swap": SWAP, "loss_keep": KEEP}
        by_kind = {name: total(losses[prediction.kinds == kind]) for name, kind in kinds.items()}
        return {"loss": total(losses), **by_kind, "error": total(errors)}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Means of the scores as the journal shows them: the error becomes accuracy or PSNR."""
        rest = {name: value for name, value in means.items() if name != "error"}
        return {**rest, self.target.metric: self.target.summary(means["error"])}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay: positions and tokens."""
        return {"mask_token"} | {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
