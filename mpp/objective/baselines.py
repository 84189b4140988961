"""Predictions that need no network; a model that has learnt anything beats them.

*Histogram*: how often each label occurs in train.
*Visible neighbours*: how often it occurs given the mean colour of the visible patches around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mpp.objective.patches import bins_of_sums, pack

Corrupted = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Batches of uint8 pixels `(b, 3, h, w)`, corrupted positions int64 `(b, K)`, and their labels."""


def neighbour_colours(pixels: Tensor, positions: Tensor, patch_size: int, bits: int) -> tuple[Tensor, Tensor]:
    """The mean colour of the visible patches around each corrupted one, of all visible ones if there are none.

    Pixels are uint8 `(b, 3, h, w)`, positions int64 `(b, K)`.

    Returns:
        The colour class, int64 `(b, K)`, and the colour itself, float64 `(b, K, 3)` in 0…255. If no patch of the
        image is visible, both are 0.
    """
    rows, columns = pixels.shape[2] // patch_size, pixels.shape[3] // patch_size
    exact = torch.float32 if 255 * patch_size**2 < 2**24 else torch.float64
    sums = F.avg_pool2d(pixels.to(exact), patch_size, divisor_override=1).flatten(2).transpose(1, 2).double()
    visible = torch.ones(sums.shape[:2], dtype=torch.float64).scatter(1, positions, 0)[..., None]
    # The count of visible patches rides along as a fourth channel; sums over 3×3 windows are exact in float64.
    table = torch.cat([sums * visible, visible], dim=-1)
    image = table.transpose(1, 2).unflatten(2, (rows, columns))
    around = F.avg_pool2d(image, 3, stride=1, padding=1, divisor_override=1).flatten(2).transpose(1, 2) - table
    everywhere = table.sum(1, keepdim=True).expand_as(table)
    chosen = torch.where(around[..., 3:] > 0, around, everywhere).round().long()
    chosen = chosen.gather(1, positions[..., None].expand(-1, -1, 4))
    count = (chosen[..., 3:] * patch_size**2).clamp(min=1)
    return pack(bins_of_sums(chosen[..., :3], count, bits), bits), chosen[..., :3].double() / count


def colour_baselines(
    train: Corrupted, validation: Corrupted, *, patch_size: int, bits: int, cells: int
) -> dict[str, float]:
    """Cross-entropies in nats, counted add-one, each of `cells` cells of a patch with a table of its own."""
    classes = 1 << (3 * bits)

    def columns(batches: Corrupted) -> tuple[Tensor, Tensor]:
        """Labels and neighbour colours, each with its cell packed on top: int64 `(n,)`."""
        labels, pairs = [], []
        for pixels, positions, truth in batches:
            colour, _ = neighbour_colours(pixels, positions, patch_size, bits)
            cell = torch.arange(cells)
            labels.append((cell * classes + truth.unflatten(1, (-1, 1)).flatten(2)).flatten())
            pairs.append((cell * classes + colour[..., None]).flatten())
        return torch.cat(labels), torch.cat(pairs)

    seen_labels, seen_contexts = columns(train)
    labels, contexts = columns(validation)
    histogram = _cross_entropy(seen_labels // classes, seen_labels, labels // classes, labels, classes)
    neighbours = _cross_entropy(seen_contexts, seen_labels, contexts, labels, classes)
    return {"histogram": histogram, "neighbours": neighbours}


def _cross_entropy(seen_context: Tensor, seen_label: Tensor, context: Tensor, label: Tensor, classes: int) -> float:
    """−log P(label | context) in nats, averaged; P counted on what was seen, add-one over the classes.

    Contexts and labels are non-negative integers; a label implies its cell, and so does a context.
    """
    span = int(max(seen_label.max(), label.max())) + 1
    together = _count(seen_context * span + seen_label, context * span + label)
    alone = _count(seen_context, context)
    return float(((alone + classes).log() - (together + 1).log()).mean())


def _count(seen: Tensor, wanted: Tensor) -> Tensor:
    """How often each wanted integer was seen: float64, of the shape of `wanted`."""
    keys, counts = torch.unique(seen, return_counts=True)
    index = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[index] == wanted, counts[index], 0).double()


def pixel_baselines(
    train: Corrupted, validation: Corrupted, *, patch_size: int, neighbours: bool = True
) -> dict[str, float]:
    """Squared errors of the mean training patch and, with `neighbours`, of the colour of the visible neighbours."""
    total, count = torch.zeros(3 * patch_size**2, dtype=torch.float64), 0
    for _, _, labels in train:
        total += labels.double().sum((0, 1))
        count += labels.shape[0] * labels.shape[1]
    mean = total / count
    errors, neighbour_errors, patches = 0.0, 0.0, 0
    for pixels, positions, labels in validation:
        _, colour = neighbour_colours(pixels, positions, patch_size, bits=1)
        guess = (colour / 255).tile(patch_size**2)
        errors += float((labels.double() - mean).square().mean(-1).sum())
        neighbour_errors += float((labels.double() - guess).square().mean(-1).sum())
        patches += labels.shape[0] * labels.shape[1]
    found = {"histogram": errors / patches}
    return {**found, "neighbours": neighbour_errors / patches} if neighbours else found


def label_baselines(train: Tensor, validation: Tensor, num_classes: int) -> dict[str, float]:
    """For classification: the cross-entropy of the label frequencies of train on validation, add-one; and chance."""
    counts = torch.bincount(train, minlength=num_classes).double() + 1
    frequency = counts / (len(train) + num_classes)
    return {"histogram": float(-frequency[validation].log().mean()), "chance": math.log(num_classes)}
