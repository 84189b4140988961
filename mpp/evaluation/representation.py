"""What features are like, without labels: their rank, how alike patches and layers are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-7


def effective_rank(features: Any) -> float:
    """The exponential of the entropy of the normalised singular values (RankMe, Garrido et al. 2023).

    With p = σ / Σσ + 1e-7, exp(−Σ p ln p): 1 for features that are multiples of one vector, and up to d.

    Args:
        features: `(n, d)`, those of 2,048 held-out images or more.

    Raises:
        ValueError: for another shape, values that are not finite, or zeros alone.
    """
    rows = _checked(features, "effective_rank", 2)
    values = torch.linalg.svdvals(rows)
    if not values.sum() > 0:
        raise ValueError("effective_rank of features that are all 0")
    share = values / values.sum() + EPSILON
    return float((-(share * share.log()).sum()).exp())


def linear_cka(one: Any, other: Any) -> float:
    """How alike two representations of the same n images are, from 0 to 1 (Kornblith et al. 2019).

    With centred X and Y, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) by Frobenius norms; rotations and scales change nothing.

    Args:
        one, other: `(n, d)` and `(n, e)`.

    Raises:
        ValueError: for other shapes, values that are not finite, or features that are the same for every image.
    """
    x, y = (_checked(each, "linear_cka", 2) for each in (one, other))
    if len(x) != len(y):
        raise ValueError(f"linear_cka compares the same images; found {len(x)} and {len(y)} rows")
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < x.shape[1] + y.shape[1]:  # by the n × n products, which are smaller
        left, right = x @ x.T, y @ y.T
        shared, size = (left * right).sum(), left.norm() * right.norm()
    else:
        shared, size = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    if not size > 0:
        raise ValueError("linear_cka of features that are the same for every image")
    return float(shared / size)


def patch_similarity(tokens: Any) -> float:
    """The mean cosine between two patches of an image: 1 where all patches of each image have collapsed to one.

    Args:
        tokens: `(images, N, d)`, the patches of each image, N of 2 or more.

    Raises:
        ValueError: for another shape, a single patch, or values that are not finite.
    """
    rows = F.normalize(_checked(tokens, "patch_similarity", 3), dim=-1)
    patches = rows.shape[1]
    if patches < 2:
        raise ValueError("patch_similarity needs two patches or more an image")
    together = rows.sum(1).square().sum(-1)  # Σ over all pairs, each patch with itself included
    return float(((together - rows.square().sum((1, 2))) / (patches * (patches - 1))).mean())


def position_similarity(embeddings: Any) -> Tensor:
    """The cosine of each patch's position embedding with all others (ViT paper, figure 7 centre).

    Args:
        embeddings: `(N, d)`, without those of prefix tokens.

    Returns:
        float64 `(N, N)`.
    """
    rows = F.normalize(_checked(embeddings, "position_similarity", 2), dim=-1)
    return rows @ rows.T


def filters(weights: Any, count: int = 28) -> Tensor:
    """The first principal components of a patch projection, as pictures (ViT paper, figure 7 left).

    Args:
        weights: `(d, channels, P, P)`.
        count: how many; fewer where there are fewer.

    Returns:
        float64 `(count, channels, P, P)`, each rescaled to [0, 1]; of either sign of a component, the one whose largest
        value is positive.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    rows = _checked(weights, "filters", 4)
    flat = rows.flatten(1)
    components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:count]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    low, high = components.amin(1, keepdim=True), components.amax(1, keepdim=True)
    return ((components - low) / (high - low).clamp(min=EPSILON)).view(-1, *rows.shape[1:])


def _checked(values: Any, name: str, dimensions: int) -> Tensor:
    """Values as float64; a ValueError for another number of dimensions, nothing, or what is not finite."""
    rows = torch.as_tensor(values).detach().double()
    if rows.ndim != dimensions or not rows.numel():
        raise ValueError(f"{name} needs {dimensions} dimensions; found {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise ValueError(f"{name} needs finite values")
    return rows
