"""Random draws that are pure functions of (seed, purpose, sample number).

A run that is killed, resumed, given other workers or spread over other processes must see the same
order, crops and corruptions. Generators with a state cannot promise that, so every draw here comes
from a counter: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011),
keyed by the seed and the purpose of the draw, counting sample numbers and indices.

The arithmetic is written once for NumPy arrays and torch tensors alike: int64 holding 32-bit words,
no product above 2**49, so that nothing overflows and every device and compiler agrees on every bit.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "np.ndarray[Any, np.dtype[np.int64]]", "torch.Tensor")

MASK_32 = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


class Key(NamedTuple):
    """The two 32-bit key words that separate one stream of draws from all others."""

    low: int
    high: int


def key(seed: int, purpose: str) -> Key:
    """The key of the draws made for `purpose` ("order", "crop", …) in a run with this seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return Key(int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))


def _multiply(multiplier: int, word: Array) -> tuple[Array, Array]:
    """High and low 32 bits of a 32 × 32 bit product, in 16-bit halves so that int64 never overflows."""
    low: Any = word * (multiplier & 0xFFFF)
    middle: Any = word * (multiplier >> 16) + (low >> 16)
    return middle >> 16, (low & 0xFFFF) | ((middle & 0xFFFF) << 16)


def philox(counter: tuple[Array, Array, Array, Array], key: Key) -> tuple[Array, Array, Array, Array]:
    """Philox4x32-10: four int64 arrays of 32-bit counter words in, four of 32-bit random words out."""
    a, b, c, d = counter
    low, high = key
    for _ in range(ROUNDS):
        first_high, first_low = _multiply(MULTIPLIERS[0], a)
        second_high, second_low = _multiply(MULTIPLIERS[1], c)
        a, b, c, d = second_high ^ b ^ low, second_low, first_high ^ d ^ high, first_low
        low, high = (low + WEYL[0]) & MASK_32, (high + WEYL[1]) & MASK_32
    return a, b, c, d


def words(key: Key, sample: Array, index: Array) -> tuple[Array, Array, Array, Array]:
    """Four independent words in [0, 2**32) for each sample number and the index of each draw of a sample.

    `sample` (int64, at least 0) and `index` (int64 in [0, 2**32)) broadcast; all four int64 arrays have that shape.
    """
    sample, index = sample + index * 0, index + sample * 0  # broadcast, in NumPy and torch alike
    return philox((sample & MASK_32, (sample >> 32) & MASK_32, index, index * 0), key)


def below(word: Array, limit: int) -> Array:
    """Words mapped to integers in [0, limit), for limits up to 2**31 (bias below limit / 2**32)."""
    return (word * limit) >> 32


def unit(word: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Words mapped to float64 in [0, 1), exactly `word / 2**32`."""
    return word / 4294967296.0


def permutation(key: Key, epoch: int, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order of `size` rows in an epoch: int64 `(size,)`, uniform over all permutations."""
    first, second, _, _ = words(key, np.int64(epoch) * np.ones(1, np.int64), np.arange(size, dtype=np.int64))
    return np.argsort((first << 31) | (second >> 1), kind="stable")
