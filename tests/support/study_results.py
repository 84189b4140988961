"""Made-up results of a study, in the form in which `results.json` has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mpp.study.arms import PRESETS
from mpp.study.claims import claims_of, note_of
from mpp.study.results import Row

LEVEL = {"random": 0.2, "scratch": 0.3, "mean_color": 0.4, "full_patch": 0.25, "supervised": 0.35, "raw_pixels": 0.15}


def row(arm: str, seed: int, evaluator: str, value: float, setting: float | None = None, **more: Any) -> Row:
    """A row; without a metric, of accuracy."""
    return Row(arm, seed, evaluator=evaluator, setting=setting, value=value)._replace(**more)


def unit(arm: str, seed: int, **variant: Any) -> list[Row]:
    """All rows of a unit, with numbers that differ everywhere."""
    rows: list[Row] = []

    def add(evaluator: str, value: float, setting: float | None = None, **more: Any) -> None:
        rows.append(row(arm, seed, evaluator, value, setting, **variant, **more))

    level = LEVEL[arm] + 0.01 * math.sin(7 * seed + len(arm)) - (0.05 if variant.get("images") else 0)
    if PRESETS[arm].objective is not None:
        masked = PRESETS[arm].role == "self-supervised"
        numbers = {"images_seen": 192, "flops_per_image": 2e8 if variant.get("size") else 1e8, "flops": 192e8,
                   "seconds": 30 + seed, "rows": variant.get("images") or 500, "baseline_histogram": 4.2}  # fmt: skip
        numbers |= {"baseline_neighbours": 3.2} if masked else {}
        for name, value in numbers.items():
            add("pretrain", value, metric=name)
        for step in (1, 2, 3):
            more = {"samples": 64 * step, "metric": "upstream_accuracy"}
            add(
                "pretrain",
                4 - 0.1 * step + 0.01 * seed,
                samples=64 * step,
                metric="validation_loss_mask" if masked else "validation_loss",
            )
            if not masked:
                add("pretrain", 0.5, samples=64 * step, metric="validation_accuracy")
            add("few_shot", level * step / 4, 5, pool="avg", **more)
            add("knn", level * step / 3, 20, pool="token", **more)
    if PRESETS[arm].role != "scratch":
        for name, value in {"classes": 4, "train_images": 90, "test_images": 50}.items():
            add("evaluate", value, metric=name)
        for layer, block, pool, gain in (("chosen", 1, "avg", 0.02), ("default", 2, "token", 0.0)):
            where = {"layer": layer, "block": block, "pool": pool}
            for shots in (1, 5):
                add("few_shot", level + gain + 0.01 * shots, shots, **where)
            for k in (20, 10):
                add("knn", level + gain - 0.001 * k, k, **where)
            add("linear_probe", level + gain + 0.03, **where)
            numbers = {"c": 0.1 * 10**seed, "at_grid_end": float(seed == 2), "converged": float(seed != 1)}
            for name, value in numbers.items():
                add("linear_probe", value, metric=name, **where)
        for block in (1, 2) if PRESETS[arm].role != "control" else ():
            for pool in ("token", "avg"):
                add("knn", level + 0.01 * block, metric="dev_accuracy", block=block, pool=pool)
    if PRESETS[arm].role != "control":
        for name, value in {"accuracy": level + 0.1, "images_seen": 640, "flops": 6.4e10, "seconds": 12}.items():
            add("finetune", value, 0.1, metric=name)
        for name, value in {"images_seen": 1280, "flops": 1.28e11, "seconds": 25}.items():
            add("search", value, 0.1, metric=name)
        for step in (5, 10):
            add("finetune", level * step / 10, 0.1, metric="dev_accuracy", samples=64 * step)
    return rows


def about(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """Titles and roles of the presets that have rows, in the order of the presets."""
    names = {each.arm for each in rows}
    return {name: {"title": arm.title, "role": arm.role} for name, arm in PRESETS.items() if name in names}


def study(rows: list[Row], **changes: Any) -> dict[str, Any]:
    """The results of a study with these rows."""
    arms = about(rows)
    claims = claims_of(rows, arms)
    recipe = {
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 4, "arguments": {"depth": 2}},
        "upstream": {"source": "embedded:a", "split": "train", "image_size": 32},
        "downstream": {"source": "embedded:b", "split": "train", "image_size": 32},
        "study": {"scale": 1.0},
        "finetuning": {"search": {"lr": [1e-3], "pool": []}},
    }
    units = dict.fromkeys((each.arm, each.seed, each.variant) for each in rows)
    return {
        "arms": arms,
        "note": note_of(claims),
        "recipe": recipe,
        "units": [
            {"name": f"{arm}/seed-{seed}", "arm": arm, "seed": seed, **variant._asdict(),
             "reconstructions": f"{arm}/picture.png" if arm in ("mean_color", "full_patch") else None}
            for arm, seed, variant in units
        ],
        "claims": claims,
        "columns": list(Row._fields),
        "rows": [list(each) for each in rows],
        "unfinished": [],
        **changes,
    }  # fmt: skip
