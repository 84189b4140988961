"""The images that come with the package: drawn scenes as a data set, no download, prepared once a machine."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mpp.data.dead_leaves import class_names, scenes

if TYPE_CHECKING:
    import datasets

VERSION = 1  # part of the cache's name: raise it with every change of the pixels
TRAIN, TEST = range(10_000), range(1_000_000_000, 1_000_002_000)  # sample numbers
CHUNK = 20  # images drawn at once: enough for NumPy to be fast, few enough for the processor's caches


def load(variant: str) -> datasets.DatasetDict:
    """The variant as `train` (10,000 rows) and `test` (2,000), columns `image` and `label`, drawn once a machine.

    `datasets` keeps them in its cache, whose lock makes a second process wait for the first.

    Raises:
        RuntimeError: if they cannot be drawn, e.g. for want of room.
    """
    import datasets

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(class_names(variant))))
    processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)
    silent = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if silent:
        datasets.disable_progress_bars()
    try:
        with _ended_by_signals():
            return _drawn(variant, features, processes)
    finally:
        if silent:
            datasets.enable_progress_bars()


def _examples(variant: str, samples: list[range], version: int) -> Iterator[dict[str, Any]]:
    """The rows of these ranges of sample numbers, images as PNG files; `version` serves the cache's name only."""
    import io

    import multiprocess  # which is how `datasets` starts processes
    from PIL import Image

    if multiprocess.parent_process() is not None:  # pyright: ignore[reportAttributeAccessIssue]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one of several: it is for the main process to end them
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.unraisablehook = lambda _: None  # the end of a drawing that was stopped is no news
    for numbers in samples:
        if numbers[0] == TRAIN[0]:
            print(f"drawing the images of embedded:{variant} (once, about 20 s) …", file=sys.stderr, flush=True)
        for start in range(numbers.start, numbers.stop, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, numbers.stop), dtype=np.int64)
            for image, label in zip(*scenes(variant, chunk), strict=True):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG", compress_level=1)
                yield {"image": {"bytes": file.getvalue(), "path": None}, "label": int(label)}


def _drawn(variant: str, features: datasets.Features, processes: int) -> datasets.DatasetDict:
    import datasets

    splits = {}
    for name, numbers in (("train", TRAIN), ("test", TEST)):
        shards = [numbers[start : start + len(numbers) // 4] for start in range(0, len(numbers), len(numbers) // 4)]
        splits[name] = datasets.Dataset.from_generator(
            _examples,
            features=features,
            gen_kwargs={"variant": variant, "samples": shards, "version": VERSION},
            num_proc=processes if processes > 1 else None,
            split=datasets.NamedSplit(name),
        )
    return datasets.DatasetDict(splits)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal ends the drawing in all its processes; `datasets` would leave them behind, or tell errors of its own."""
    from datasets.config import HF_DATASETS_CACHE

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    here = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if here:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except Exception as error:
        reasons: list[BaseException] = [error]
        while (before := reasons[-1].__cause__ or reasons[-1].__context__) is not None:
            reasons.append(before)
        for reason in reasons:
            if isinstance(reason, KeyboardInterrupt | SystemExit):
                raise reason from None
        cause = re.search(r"^\w*Error: (.+)$", str(reasons[-1]), re.MULTILINE)  # another process's, as text
        raise RuntimeError(
            f"the embedded images could not be drawn: {cause[1] if cause else error}. They go to the cache of "
            f"`datasets` in {HF_DATASETS_CACHE}: make room there, or set HF_DATASETS_CACHE to another folder"
        ) from error
    finally:
        if here:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
