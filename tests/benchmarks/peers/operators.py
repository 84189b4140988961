"""The operators of a step of `mpp` by their share of its time: `python -m tests.benchmarks.peers.operators SIZE`.

One stream and one thread, so that the profile sees all that is computed; the least disturbed of several steps.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import torch

from tests.benchmarks.peers.libraries import ours
from tests.benchmarks.peers.sizes import SIZES
from tests.benchmarks.peers.tables import table
from tests.benchmarks.peers.worker import profiled


def main() -> None:
    """Profile, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("size", choices=SIZES)
    arguments.add_argument("--steps", type=int, default=6)
    given = arguments.parse_args()
    step = ours.build("mpp", SIZES[given.size]).take["one stream"]
    torch.set_num_threads(1)
    step()
    found = [profiled(step)["operators"] for _ in range(given.steps)]
    shortest = min(found, key=lambda operators: operators[0][1] / operators[0][2])  # the time of all of them
    print(table(["operator", "share"], [[f"`{name}`", f"{share:.1%}"] for name, _, share in shortest]))


if __name__ == "__main__":
    main()
