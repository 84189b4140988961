"""The embedded images: drawn scenes as a data set, prepared once a machine without a download."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import multiprocess  # which is how `datasets` starts processes
import numpy as np
from datasets import config

from mpp.data.dead_leaves import class_names, scenes
from mpp.data.decode import as_ppm

VERSION = 2  # part of the cache's name: raise it with every change of the pixels, or of how they are stored
TRAIN, TEST = range(10_000), range(1_000_000_000, 1_000_002_000)  # sample numbers
CHUNK = 20  # images drawn at once: enough for NumPy to be fast, few enough for the processor's caches


def load(variant: str) -> datasets.DatasetDict:
    """The variant as `train` (10,000 rows) and `test` (2,000), columns `image` and `label`.

    `datasets` keeps them in its cache, whose lock makes a second process wait for the first.

    Raises:
        RuntimeError: if they cannot be drawn, e.g. on a full disk.
    """
    processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(class_names(variant))))
    splits = {}
    with _stopped_by_signals():
        for name, numbers in (("train", TRAIN), ("test", TEST)):
            size = len(numbers) // 4
            shards = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            splits[name] = datasets.Dataset.from_generator(
                _examples,
                features=features,
                gen_kwargs={"variant": variant, "samples": shards, "version": VERSION},
                num_proc=processes if processes > 1 else None,
                split=datasets.NamedSplit(name),
            )
    return datasets.DatasetDict(splits)


def _examples(variant: str, samples: list[range], version: int) -> Iterator[dict[str, Any]]:
    """The rows of these ranges of sample numbers, images uncompressed; `version` serves the cache's name only."""
    if multiprocess.parent_process() is not None:  # pyright: ignore[reportAttributeAccessIssue]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the main process ends the others
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.unraisablehook = lambda _: None  # when drawing is stopped
    for numbers in samples:
        if numbers[0] == TRAIN[0]:
            print(f"drawing the images of embedded:{variant} (once, about 20 s) …", file=sys.stderr, flush=True)
        for start in range(numbers.start, numbers.stop, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, numbers.stop), dtype=np.int64)
            for image, label in zip(*scenes(variant, chunk), strict=True):
                yield {"image": {"bytes": as_ppm(image), "path": None}, "label": int(label)}


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """A signal stops the drawing in all its processes; `datasets` would leave them, or raise errors of its own."""

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
            f"the embedded images could not be drawn: {cause[1] if cause else error}. They are written to the cache of "
            f"`datasets` in {config.HF_DATASETS_CACHE}: make room there, or set HF_DATASETS_CACHE to another folder"
        ) from error
    finally:
        if here:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
