"""Masked patch prediction (ViT paper, section 4.6 and appendix B.1.2) as one module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mpp import randomness
from mpp.encoder.backbone import Backbone
from mpp.encoder.encoder import Encoder
from mpp.objective.base import Objective, Sample
from mpp.objective.corruption import KEEP, MASK, SWAP, Corruption, Draw
from mpp.objective.heads import make_head
from mpp.objective.patches import patchify, take, unpatchify
from mpp.objective.replacement import corrupt
from mpp.objective.scores import Scores, total
from mpp.objective.targets import MeanColor, PatchTarget, Target

HIDDEN = float("nan")
"""The pixels of a masked patch in pictures."""
MARKS = {"masked": MASK, "swapped": SWAP, "kept": KEEP}


class Prediction(NamedTuple):
    """What masked patch prediction returns for a batch of b images with K corrupted patches each."""

    loss: Tensor
    """Scalar float32, the mean over all corrupted patches."""
    logits: Tensor
    """`(b, K, 8^bits)` for mean colours, `(b, K, cells², 8^bits)` downsized, `(b, K, 3·P²)` for full patches."""
    labels: Tensor
    """int64 `(b, K)` or `(b, K, cells²)`; for full patches float32 `(b, K, 3·P²)`."""
    positions: Tensor
    """int64 `(b, K)`, ascending: the corrupted patches."""
    kinds: Tensor
    """int64 `(b, K)`: 0 mask, 1 swap, 2 keep."""

    def __repr__(self) -> str:
        rest = (f"{name}={str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in self._asdict().items())
        return f"Prediction(loss={self.loss.item():.4f}, {', '.join(list(rest)[1:])})"


class MaskedPatchPrediction(Objective):
    """Corrupt half of the patch embeddings; predict each corrupted patch from its own final token.

    Args:
        encoder: from `create_encoder` or `load_encoder`.
        target: `MeanColor()`, `DownsizedPatch()` or `FullPatch()`; None takes the first.
        corruption: which embeddings are corrupted, and how.
        seed: with the sample numbers it decides every corruption.
        head: `linear`, or `mlp` for two layers.

    Raises:
        ValueError: if the encoder has no patches, or target or corruption do not fit them.
    """

    headline: ClassVar[str] = "loss_mask"
    headline_title: ClassVar[str] = "loss on masked patches"
    line: ClassVar[Mapping[str, str]] = {
        "loss": "loss {:.3f}",
        "loss_mask": "masked {:.3f}",
        "accuracy": "acc {:.1%}",
        "psnr": "{:.1f} dB",
        "histogram": "(frequencies {:.3f})",
        "neighbours": "(neighbours {:.3f})",
    }
    encoder: Encoder  # pyright: ignore[reportIncompatibleVariableOverride]  its patches are needed

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
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.target = MeanColor() if target is None else target
        self.corruption = Corruption() if corruption is None else corruption
        if not isinstance(self.target, PatchTarget):
            raise ValueError(f"target must be MeanColor(), DownsizedPatch() or FullPatch(), found {target!r}")
        if not isinstance(self.corruption, Corruption):
            raise ValueError(f"corruption must be a Corruption(), found {corruption!r}")
        self.corruption.check(encoder.num_patches)
        self.target.warn(encoder.patch_size)
        self.key = randomness.key(seed, "corruption")
        self.head = make_head(head, encoder.layout.width, self.target.outputs(encoder.patch_size))
        self.mask_token = nn.Parameter(torch.empty(encoder.layout.width))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        pixels: Tensor,
        samples: Tensor | None = None,
        labels: Tensor | None = None,
        draw: Tensor | None = None,
    ) -> Prediction:
        """Embeddings, corruption, prediction, loss.

        Pixels are uint8 `(b, 3, h, w)`. Sample numbers, int64 `(b,)`, decide the corruption; None draws from torch's
        generator. Labels are not used. `draw`, int64 `(3, b, K)`, is the corruption itself, from `draws`.

        Raises:
            ValueError: for float or wrongly shaped pixels.
        """
        self.encoder.check(pixels)
        if samples is None:
            samples = torch.randint(2**62, pixels.shape[:1], device=pixels.device)
        samples = torch.as_tensor(samples, device=pixels.device)
        if samples.is_floating_point() or samples.is_complex():
            raise ValueError(f"sample numbers must be integers, found {samples.dtype}")
        if samples.shape != pixels.shape[:1]:
            raise ValueError(f"{len(pixels)} images need as many sample numbers, found {tuple(samples.shape)}")
        drawn = self._draw(samples) if draw is None else Draw(*draw.unbind())
        tokens = self.encoder(pixels, edit=partial(corrupt, mask_token=self.mask_token, draw=drawn))
        logits = self.target.shape(self.head(self.encoder.patch_tokens(tokens, drawn.positions)))
        truth = self.target.labels_at(pixels, drawn.positions, self.encoder.patch_size)
        return Prediction(self.target.loss(logits, truth), logits, truth, drawn.positions, drawn.kinds)

    def draws(self) -> Callable[[Tensor], Tensor]:
        """The corruption of samples, int64 `(3, b, K)`: positions, kinds and others of a `Draw`."""
        return partial(_drawn, self.corruption, self.key, self.encoder.num_patches)

    def _draw(self, samples: Tensor) -> Draw:
        return self.corruption.draw(self.key, samples, self.encoder.num_patches)

    def patches(self, pixels: Tensor, positions: Tensor) -> Tensor:
        """The pixels of some patches: uint8 `(b, K, P, P, 3)`."""
        return take(patchify(pixels, self.encoder.patch_size), positions)

    def scores(self, prediction: Prediction, pixels: Tensor) -> Scores:
        """Sums over the corrupted patches of a batch: the loss, by kind of corruption too, and the errors."""
        losses = self.target.losses(prediction.logits, prediction.labels)
        errors = self.target.errors(prediction.logits, prediction.labels, self.patches(pixels, prediction.positions))
        kinds = {"loss_mask": MASK, "loss_swap": SWAP, "loss_keep": KEEP}
        by_kind = {name: total(losses, where=prediction.kinds == kind) for name, kind in kinds.items()}
        return {"loss": total(losses), **by_kind, "error": total(errors)}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """The means of the scores; the error becomes accuracy or PSNR."""
        rest = {name: value for name, value in means.items() if name != "error"}
        return {**rest, self.target.metric: self.target.summary(means["error"])}

    @property
    def unit(self) -> str:
        """That of the target."""
        return self.target.unit

    @property
    def words(self) -> dict[str, str]:
        """The losses, the target's metric, and the two baselines."""
        return {
            "loss": f"on all corrupted patches, {self.unit}",
            "masked": f"loss on masked patches, {self.unit}",
            **self.target.words,
            "neighbours": "loss of predicting from the colours of visible patches around",
        }

    def baselines(self, train: Sample, validation: Sample) -> dict[str, float]:
        """Label frequencies and visible neighbours: see `baselines.py`."""
        return self.target.baselines(self._corrupted(train), self._corrupted(validation), self.encoder.patch_size)

    def _corrupted(self, sample: Sample) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pixels, corrupted positions and their labels, batch by batch."""
        for pixels, samples in sample.batches:
            positions = self._draw(samples).positions
            yield pixels, positions, self.target.labels_at(pixels, positions, self.encoder.patch_size)

    def picture(self, pixels: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Original, seen, predicted: each float32 `(b, 3, h, w)` in [0, 1].

        Seen: masked patches NaN, swapped ones with the pixels of the patch whose embedding they got. Predicted: the
        predictions at the corrupted positions, the visible patches as they are.
        """
        prediction, draw = self.forward(pixels, samples), self._draw(samples)
        patches = patchify(pixels, self.encoder.patch_size).float() / 255
        other, kinds = take(patches, draw.others), draw.kinds[..., None, None, None]
        seen = take(patches, draw.positions).where(kinds == KEEP, other.where(kinds == SWAP, HIDDEN))
        guesses = self.target.picture(prediction.logits, self.patches(pixels, draw.positions))
        corrupted = torch.arange(len(pixels), device=pixels.device)[:, None], draw.positions
        return {
            "original": pixels.float() / 255,
            "seen": unpatchify(patches.index_put(corrupted, seen), self.encoder.layout.grid),
            "predicted": unpatchify(patches.index_put(corrupted, guesses), self.encoder.layout.grid),
        }

    def marks(self, samples: Tensor) -> dict[str, Tensor]:
        """The masked, swapped and kept patches: bool `(b, rows, columns)` each."""
        draw, grid = self._draw(samples), self.encoder.layout.grid
        kinds = draw.kinds.new_full((len(samples), grid**2), -1).scatter(1, draw.positions, draw.kinds)
        return {name: (kinds == kind).unflatten(1, (grid, grid)) for name, kind in MARKS.items()}

    def bare(self, batch_size: int) -> nn.Module:
        """timm's model on normalised pixels, the same head on as many tokens, the same loss."""
        return _BareMaskedPatch(self, batch_size)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay: positions and tokens."""
        return {"mask_token"} | super().no_weight_decay()


def _drawn(corruption: Corruption, key: randomness.Key, num_patches: int, samples: Tensor) -> Tensor:
    return torch.stack(corruption.draw(key, samples, num_patches))


class _BareMaskedPatch(nn.Module):
    """No corruption, no labels from pixels; the predicted tokens are the first K."""

    images: Tensor
    labels: Tensor

    def __init__(self, objective: MaskedPatchPrediction, batch_size: int) -> None:
        super().__init__()
        copied = copy.deepcopy(objective)
        self.vit, self.head, self.target = copied.encoder.vit, copied.head, copied.target
        layout, count = copied.encoder.layout, copied.corruption.count(copied.encoder.num_patches)
        self.tokens = slice(layout.num_prefix_tokens, layout.num_prefix_tokens + count)
        size, side = layout.image_size, layout.patch_size
        noise = torch.randint(0, 256, (batch_size, count, side, side, 3), dtype=torch.uint8)
        self.register_buffer("images", torch.randn(batch_size, 3, size, size))
        self.register_buffer("labels", self.target.labels(noise))

    def forward(self) -> Tensor:
        """The loss."""
        tokens = self.vit.forward_features(self.images)[:, self.tokens]
        return self.target.loss(self.target.shape(self.head(tokens)), self.labels)
