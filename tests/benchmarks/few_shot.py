"""How long the closed form takes at the size of ImageNet: `python -m tests.benchmarks.few_shot`.

1,000 classes × 25 shots × 768 dimensions, 50,000 rows to test on; all four numbers of shots, three seeds.
"""

from __future__ import annotations

import time

import numpy as np

import mpp

CLASSES, SHOTS, WIDTH, TEST = 1000, (1, 5, 10, 25), 768, 50_000


def main() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH))
    train_labels = np.repeat(np.arange(CLASSES), 30)
    test_labels = rng.integers(0, CLASSES, TEST)
    train, test = (centres[y] + 8 * rng.normal(size=(len(y), WIDTH)) for y in (train_labels, test_labels))
    begun = time.perf_counter()
    scores = mpp.few_shot(train, train_labels, test, test_labels, shots=SHOTS, seeds=(0, 1, 2))
    seconds = time.perf_counter() - begun
    for shots, score in scores.items():
        print(f"{shots:3} shots: {score.mean:.1%} ± {100 * score.std:.1f}")
    print(f"{seconds:.1f} s")


if __name__ == "__main__":
    main()
