"""A whole run of a peer, from JPEGs on disk: `python -m tests.benchmarks.peers.whole_run LIBRARY METHOD FOLDER OUTPUT
SIZE STEPS`. Writes the time of each step to `OUTPUT/stamps.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from tests.benchmarks.peers.sizes import SIZES
from tests.benchmarks.peers.worker import said


def main() -> None:
    """Train."""
    library, method, folder, output, size, steps = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    stamps: list[float] = []
    try:
        module = import_module(f"tests.benchmarks.peers.libraries.{library}")
        module.train(
            method, SIZES[size], Path(folder), Path(output), int(steps), lambda: stamps.append(time.perf_counter())
        )
    except Exception as error:
        Path(output, "error.txt").write_text(said(error))
        raise
    Path(output, "stamps.json").write_text(json.dumps(stamps))


if __name__ == "__main__":
    main()
