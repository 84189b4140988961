"""Slow, literal references: Python loops over integers, and captures of what timm's own modules receive."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


def cell_edges(patch: int, cells: int) -> list[tuple[int, int]]:
    """The windows of adaptive average pooling; they overlap where `cells` does not divide `patch`."""
    return [(i * patch // cells, -(-(i + 1) * patch // cells)) for i in range(cells)]


def colour_class(cell: np.ndarray, bits: int) -> int:
    """Class of one cell `(3, rows, columns)`: three bins, the first channel most significant."""
    label = 0
    for channel in cell:
        values = [int(v) for v in channel.flatten()]
        label = label * 2**bits + sum(values) * 2**bits // (256 * len(values))
    return label


def patches(images: np.ndarray, patch: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(image number, patch number row by row, pixels `(3, patch, patch)`) of every patch."""
    _, _, height, width = images.shape
    for b, image in enumerate(images):
        for n in range((height // patch) * (width // patch)):
            row, column = divmod(n, width // patch)
            yield b, n, image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]


def _count(images: np.ndarray, patch: int) -> tuple[int, int]:
    return len(images), (images.shape[2] // patch) * (images.shape[3] // patch)


def mean_color_labels(images: np.ndarray, patch: int, bits: int) -> np.ndarray:
    labels = np.empty(_count(images, patch), np.int64)
    for b, n, pixels in patches(images, patch):
        labels[b, n] = colour_class(pixels, bits)
    return labels


def downsized_labels(images: np.ndarray, patch: int, cells: int, bits: int) -> np.ndarray:
    labels = np.empty((*_count(images, patch), cells**2), np.int64)
    edges = cell_edges(patch, cells)
    for b, n, pixels in patches(images, patch):
        windows = [pixels[:, top:bottom, left:right] for top, bottom in edges for left, right in edges]
        labels[b, n] = [colour_class(window, bits) for window in windows]
    return labels


def full_patch_labels(images: np.ndarray, patch: int) -> np.ndarray:
    """float64 in [0, 1], ordered (row column channel)."""
    labels = np.empty((*_count(images, patch), 3 * patch**2))
    for b, n, pixels in patches(images, patch):
        labels[b, n] = [pixels[c, y, x] / 255 for y in range(patch) for x in range(patch) for c in range(3)]
    return labels


def normalized_as_in_mae(labels: np.ndarray) -> np.ndarray:
    """`(target - mean) / (var + 1e-6) ** 0.5` with torch's unbiased variance, as in models_mae.py."""
    mean, variance = labels.mean(-1, keepdims=True), labels.var(-1, ddof=1, keepdims=True)
    return (labels - mean) / np.sqrt(variance + 1e-6)


def at(labels: np.ndarray, positions: torch.Tensor) -> np.ndarray:
    """The rows of `labels` `(b, N, …)` that belong to `positions` `(b, K)`."""
    return np.stack([rows[chosen] for rows, chosen in zip(labels, positions.numpy(), strict=True)])


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of −log softmax in float64."""
    rows = logits.detach().double().numpy().reshape(-1, logits.shape[-1])
    top = rows.max(-1, keepdims=True)
    log_total = top[:, 0] + np.log(np.exp(rows - top).sum(-1))
    return float(np.mean(log_total - rows[np.arange(len(rows)), labels.numpy().reshape(-1)]))


def random_pixels(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """uint8 noise `(count, 3, size, size)`; no two patches of it are alike."""
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8)
    return torch.from_numpy(values)


def scramble(objective: nn.Module, vit: nn.Module, seed: int = 0) -> None:
    """Draw head and mask embedding anew: a zero start must hide neither a gradient nor a wrong row."""
    generator = torch.Generator().manual_seed(seed)
    inside = {id(parameter) for parameter in vit.parameters()}
    with torch.no_grad():
        for parameter in objective.parameters():
            if id(parameter) not in inside:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@contextlib.contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the first argument of every call of `module`."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what every call of `module` returns, still attached to the graph."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def without_positions(vit: nn.Module) -> Iterator[None]:
    """Set the absolute position embedding to zero: what enters the first block is then the embedding itself."""
    positions = getattr(vit, "pos_embed", None)
    if positions is None:
        yield
        return
    before = positions.detach().clone()
    with torch.no_grad():
        positions.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            positions.copy_(before)


def embeddings(objective, vit, pixels, samples):
    """(prediction, clean, corrupted): patch embeddings `(b, N, d)` as timm computes them and as the blocks get them."""
    with torch.no_grad(), without_positions(vit):
        with inputs_of(vit.patch_embed) as door, inputs_of(vit.blocks[0]) as entered:
            prediction = objective(pixels, samples=samples)
        assert len(door) == len(entered) == 1, "one pass through the encoder"
        corrupted = entered[0][:, vit.num_prefix_tokens :]
        clean = vit.patch_embed(door[0]).reshape(corrupted.shape)
    return prediction, clean, corrupted


def swap_sources(prediction, clean, corrupted) -> torch.Tensor:
    """`(b, K)`: the position each swapped embedding was taken from, found bit by bit; −1 elsewhere."""
    sources = torch.full_like(prediction.positions, -1)
    for b, k in (prediction.kinds == 1).nonzero().tolist():
        same = (clean[b] == corrupted[b, prediction.positions[b, k]]).all(-1).nonzero().flatten()
        assert len(same) == 1, f"image {b}: the swapped embedding is that of {len(same)} positions of the same image"
        sources[b, k] = same[0]
    return sources
