"""Load the synthetic images into a cache of their own, print a digest: `tests.support.drawing CACHE [TRAIN TEST]`."""

from __future__ import annotations

import hashlib

import datasets
import datasets.config

from mpp.cli import guarded
from mpp.data import synthetic


def main(arguments: list[str]) -> int:
    cache, *counts = arguments
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    if counts:
        train, test = map(int, counts)
        synthetic.TRAIN, synthetic.TEST = range(train), range(synthetic.TEST.start, synthetic.TEST.start + test)

    def load() -> int:
        data = synthetic.load("b")
        images = (row["image"].tobytes() for split in data.values() for row in split)
        digest = hashlib.sha256(b"".join(images)).hexdigest()
        print(digest, data["train"]._fingerprint, *data["train"][:20]["label"])
        return 0

    return guarded(load)
