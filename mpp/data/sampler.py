"""The order of training: the row of each sample number, and the sample numbers of each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mpp import randomness

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Order:
    """The row of each sample number, a pure function of the seed.

    Every epoch is a permutation of all rows. Sample `s` is at position `s % rows` of epoch `s // rows`. Nothing is
    dropped at the end of an epoch: a batch may span two epochs.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.size = rows
        self._key = randomness.key(seed, "order")
        self._epochs: dict[int, Numbers] = {}

    def rows(self, samples: Numbers) -> Numbers:
        """int64 `(n,)` sample numbers → int64 `(n,)` row numbers."""
        epochs, positions = np.divmod(samples, self.size)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._permutation(int(epoch))[positions[here]]
        return rows

    def _permutation(self, epoch: int) -> Numbers:
        """The permutation of an epoch. The last two are cached, since a batch may span both."""
        if epoch not in self._epochs:
            self._epochs = {old: self._epochs[old] for old in list(self._epochs)[-1:]}
            self._epochs[epoch] = randomness.permutation(self._key, epoch, self.size)
        return self._epochs[epoch]


class BatchPlan(NamedTuple):
    """The micro-batches and processes of a step: step `s` holds samples `[s · batch_size, (s + 1) · batch_size)`."""

    batch_size: int
    micro_batch_size: int
    rank: int
    processes: int

    @property
    def accumulation(self) -> int:
        """The number of micro-batches of one step in this process."""
        return self.batch_size // (self.micro_batch_size * self.processes)

    def micro_batches(self, first_step: int, last_step: int) -> Iterator[Numbers]:
        """The sample numbers, int64 `(micro_batch_size,)`, of this process's micro-batches; `last_step` is excluded."""
        for step in range(first_step, last_step):
            for index in range(self.accumulation):
                start = step * self.batch_size + (index * self.processes + self.rank) * self.micro_batch_size
                yield np.arange(start, start + self.micro_batch_size, dtype=np.int64)


def plan_batches(batch_size: int, micro_batch_size: int | None, *, rank: int = 0, processes: int = 1) -> BatchPlan:
    """Divide the global batch among processes and micro-batches. Raises ValueError if it cannot be divided evenly."""
    if batch_size % processes:
        raise ValueError(f"training.batch_size {batch_size} is not a multiple of the {processes} processes")
    micro = micro_batch_size or batch_size // processes
    if batch_size % (micro * processes):
        product = f"micro_batch_size {micro} × {processes} processes = {micro * processes}"
        raise ValueError(f"training.batch_size {batch_size} is not a multiple of {product}")
    return BatchPlan(batch_size, micro, rank, processes)
