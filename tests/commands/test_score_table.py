"""The table of scores: columns apart, rows in order, and how far an accuracy is known."""

from __future__ import annotations

import re
from typing import Any

import pytest
from scipy.stats import binomtest

from mpp.commands.score_table import half_width, score_table


def results(block: int, accuracy: float, spread: float, train: int = 360, test: int = 40) -> dict[str, Any]:
    shots = {str(count): {"mean": accuracy, "std": spread} for count in (1, 5)}
    k = {str(count): accuracy for count in (20, 10, 100, 200)}

    def at(pool: str) -> dict[str, Any]:
        return {"block": block, "pool": pool}

    entries = {
        "few_shot": {"shots": shots},
        "knn": {"k": k},
        "linear_probe": {"c": 1e-5, "accuracy": accuracy, "grid_end": None, "converged": True},
    }
    scores = {name: {"default": at("token") | e, "headline": at("token") | e} for name, e in entries.items()}
    controls = {name: {key: {"default": at("avg") | e} for key, e in entries.items()}
                for name in ("raw_pixels", "patch_colors")}  # fmt: skip
    return {"scores": scores, "controls": controls, "classes": 3, "train_images": train, "test_images": test}


@pytest.mark.parametrize("block", [1, 12, 24])
@pytest.mark.parametrize(("accuracy", "spread"), [(0.217, 0.014), (1.0, 0.118), (0.25, 0.0)])
def test_columns_never_run_together_and_fit_in_80_letters(block: int, accuracy: float, spread: float):
    lines = score_table(results(block, accuracy, spread)).splitlines()
    assert max(map(len, lines[:-3])) <= 80
    cell = f"{100 * accuracy:.1f} ± {100 * spread:.1f}"
    [row] = [line for line in lines if line.startswith("  5 a class")]
    assert re.fullmatch(r"  5 a class" + rf" +{re.escape(cell)}" * 4 + r" +33\.3", row)


def test_neighbours_ascend_and_too_many_are_marked():
    lines = score_table(results(4, 0.5, 0.1)).splitlines()
    rows = [line.split() for line in lines if line.startswith("  k = ")]
    assert [int(row[2]) for row in rows] == [10, 20, 100, 200]
    assert [row[3] == "*" for row in rows] == [False, False, True, True]
    assert "* more than a tenth of the 360 training images: nearly a vote of all" in lines
    assert "*" not in score_table(results(4, 0.5, 0.1, train=2000))


def test_an_interval_is_wilson_s():
    for hits, images in ((20, 40), (3, 50), (500, 1000)):
        low, high = binomtest(hits, images).proportion_ci(method="wilson")
        assert half_width(hits / images, images) == pytest.approx((high - low) / 2, rel=1e-4)
