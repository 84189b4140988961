"""Batches of crops: for training in the run's order, for evaluation row by row."""

from __future__ import annotations

import atexit
import ctypes
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mpp import randomness
from mpp.data.crops import WORDS_PER_CROP, centre, cut, random_crop, shorter_side, whole
from mpp.data.damaged import DecodedImage, DecodedImages, TooManyDamagedError
from mpp.data.decode import crop_decoder
from mpp.data.sampler import Numbers, Order
from mpp.data.settings import DataSettings
from mpp.data.table import ImageTable

CACHE_BYTES = 2**28
"""Size of the cache of held-out crops: 1,700 images of 224 px."""
MOST_TOGETHER = 2**24
"""Bytes of images that are resized at once: small ones take longer to be handed over one by one."""
PREFETCHED = 2
"""Batches that each loader process holds ready, in shared memory."""
SHARED_MEMORY = Path("/dev/shm")


class Batch(NamedTuple):
    """A batch of crops."""

    pixels: Tensor
    """uint8 `(b, 3, h, w)`."""
    samples: Tensor
    """int64 `(b,)`: the sample numbers, which decide crop, flip and corruption."""
    labels: Tensor | None
    """int64 `(b,)`, where the data has labels."""
    damaged: tuple[tuple[int, str], ...] = ()
    """Rows that could not be decoded, and why; a neighbour replaces each."""
    draw: Tensor | None = None
    """What the objective has drawn for these samples, if it draws beforehand."""


class TrainingCrops(Dataset[Batch]):
    """Random crops. An item is a micro-batch, indexed by its sample numbers.

    `draw` is what an objective draws for sample numbers; see `Objective.draws`.
    """

    def __init__(
        self, rows: ImageTable, settings: DataSettings, seed: int, draw: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.images = _decoded(rows, settings, settings.image_size, cache=settings.cache)
        self.settings, self.draw = settings, draw
        self.order = Order(len(rows), seed)
        self.key = randomness.key(seed, "crop")

    def __getitem__(self, samples: Numbers) -> Batch:
        words = randomness.words(self.key, samples[:, None], np.arange(WORDS_PER_CROP, dtype=np.int64)[None, :])
        draws = np.stack(words, axis=-1)
        pixels = _empty(len(samples), self.settings.image_size)
        loaded = []
        for crop, row, draw in zip(pixels, self.order.rows(samples).tolist(), draws, strict=True):
            image = self.images.load(row, partial(random_crop, draw, settings=self.settings))
            crop.copy_(cut(image.pixels, image.crop, self.settings))
            loaded.append((image.row, image.damaged))
        batch = _batch(self.images.rows, loaded, pixels, samples)
        return batch if self.draw is None else batch._replace(draw=self.draw(batch.samples))


class EvaluationCrops(Dataset[Batch]):
    """Centre crops. An item is a batch, indexed by row numbers, which are its sample numbers too.

    `cache_bytes` is the size of a cache of crops, for callers that read the same rows many times. `images` are those of
    the rows, if they are decoded already.
    """

    def __init__(
        self, rows: ImageTable, settings: DataSettings, *, cache_bytes: int = 0, images: DecodedImages | None = None
    ) -> None:
        self.images = images or _decoded(rows, settings, shorter_side(settings))
        self.settings, self.cache_bytes = settings, cache_bytes
        self._bytes_left, self._cached = cache_bytes, dict[int, DecodedImage]()

    def fits_in_cache(self, rows: int) -> bool:
        """Whether the crops of so many rows fit in the cache together."""
        return 3 * self.settings.image_size**2 * rows <= self.cache_bytes

    def __getitem__(self, rows: Numbers) -> Batch:
        pixels = _empty(len(rows), self.settings.image_size)
        loaded = []
        waiting: list[tuple[int, Tensor]] = []  # neighbours in the batch, of one shape, to be resized together
        for number, row in enumerate(rows.tolist()):
            image = self._cached.get(row) or self.images.load(row)
            loaded.append((image.row, image.damaged))
            if row in self._cached:
                pixels[number] = image.pixels
                continue
            other = waiting[0][1] if waiting else image.pixels
            if other.shape != image.pixels.shape or other.numel() * (len(waiting) + 1) > MOST_TOGETHER:
                self._crop(waiting, pixels)
            waiting.append((number, image.pixels))
        self._crop(waiting, pixels)
        if get_worker_info() is None:
            self._keep(rows, loaded, pixels)
        return _batch(self.images.rows, loaded, pixels, rows)

    def _crop(self, images: list[tuple[int, Tensor]], pixels: Tensor) -> None:
        """Write the crops of images, all of one shape, to their rows of `pixels`; empty the list."""
        if images:
            batch = torch.stack([image for _, image in images]) if len(images) > 1 else images[0][1][None]
            pixels[[number for number, _ in images]] = centre(batch, self.settings)
            images.clear()

    def _keep(self, rows: Numbers, loaded: list[tuple[int, tuple[tuple[int, str], ...]]], pixels: Tensor) -> None:
        """Put crops into the cache as long as there is room."""
        for row, (source, damaged), crop in zip(rows.tolist(), loaded, pixels, strict=True):
            if row not in self._cached and (size := crop.numel()) <= self._bytes_left:
                self._bytes_left -= size
                self._cached[row] = DecodedImage(crop.clone(), whole(*crop.shape[1:]), source, damaged)


Crops = TrainingCrops | EvaluationCrops


def _decoded(rows: ImageTable, settings: DataSettings, least: int, *, cache: bool = False) -> DecodedImages:
    decoder = crop_decoder(settings, least)
    return DecodedImages(rows, cache=cache, max_bad_share=settings.max_bad_share, decoder=decoder)


def _empty(images: int, size: int) -> Tensor:
    """Memory for a batch; in a loader process shared with the main process, which copies nothing."""
    shape = (images, 3, size, size)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))  # as torch's own `default_collate` does
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


def _batch(
    table: ImageTable, loaded: list[tuple[int, tuple[tuple[int, str], ...]]], pixels: Tensor, samples: Numbers
) -> Batch:
    labels = None if table.labels is None else torch.from_numpy(table.labels[[row for row, _ in loaded]])
    damaged = tuple(bad for _, before in loaded for bad in before)
    return Batch(pixels, torch.from_numpy(samples), labels, damaged)


def check_shared_memory(size: int, workers: int) -> None:
    """Check that the batches that loader processes hold ready fit in shared memory, where they would die otherwise.

    Args:
        size: bytes of a batch.
        workers: loader processes of this process; those of the other processes of this machine are counted too.

    Raises:
        ValueError: with what is there and what is needed.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return
    needed = workers * (PREFETCHED + 1) * size * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ValueError(
            f"{SHARED_MEMORY} has {free / 2**20:,.0f} MiB free, and the loader processes need {needed / 2**20:,.0f} "
            f"MiB for batches of {size / 2**20:,.1f} MiB: lower data.workers (now {workers}) or "
            "training.micro_batch_size, or make it larger (docker run --shm-size=8g)"
        )


def batches(crops: Crops, numbers: Iterable[Numbers], *, workers: int = 0, pin: bool = False) -> Iterator[Batch]:
    """The items of `crops` in the order of `numbers`, whatever the number of workers.

    Args:
        crops: the data set.
        numbers: int64 `(b,)` for each batch; iterated once, so the workers live as long as the run.
        workers: loader processes; 0 loads in this process.
        pin: put the batches in pinned memory, for a GPU.

    Raises:
        TooManyDamagedError: when there is no good image near a damaged one.
        ValueError: if the batches of the workers do not fit in shared memory.
    """
    order = iter(numbers)
    first = list(islice(order, 1))
    for chunk in first:
        draw = getattr(crops, "draw", None)
        drawn = 0 if draw is None else draw(torch.from_numpy(chunk[:1])).nbytes
        check_shared_memory((3 * crops.settings.image_size**2 + drawn) * len(chunk), workers)
    leaving = multiprocessing.RawValue(ctypes.c_bool, False)
    loader = DataLoader(
        _Guarded(crops),
        batch_size=None,
        sampler=chain(first, order),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=partial(_leave_signals_to_the_main_process, leaving=leaving),
        prefetch_factor=PREFETCHED if workers else None,  # whole micro-batches, in shared memory
        generator=torch.Generator(),  # its own: it would draw from the one that seeds each step
    )
    if workers:
        atexit.register(setattr, leaving, "value", True)  # registered late, so done before the workers are terminated
    for batch in loader:
        if isinstance(batch, TooManyDamagedError):
            raise batch
        yield batch


class _Guarded(Dataset[Any]):
    """Returns `TooManyDamagedError`: torch would add a worker's traceback to the message of what is raised."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops

    def __getitem__(self, numbers: Numbers) -> Batch | TooManyDamagedError:
        try:
            return self.crops[numbers]
        except TooManyDamagedError as error:
            return TooManyDamagedError(*error.args)


def _leave_signals_to_the_main_process(worker: int, leaving: Any) -> None:
    """Ignore signals to the process group: a step that is to be finished needs its workers.

    They end at a SIGTERM only when the main process is `leaving`, which ends them so.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if leaving.value else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
