"""From the table of results to claims: paired by seed, and shown only where the intervals say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mpp.study.claims import OPEN, REVERSE, SHOWN, WITHHELD, answer_of, claims_of, note_of, signed
from mpp.study.results import Row, accuracies, measures
from mpp.study.units import Variant
from tests.support.study_results import about, row

SCRATCH, MPP, SUPERVISED = (0.50, 0.52, 0.48), (0.58, 0.61, 0.57), (0.70, 0.715, 0.68)


def arm(name: str, values: Sequence[float], evaluator: str = "finetune", **more: Any) -> list[Row]:
    """Accuracies of an arm by seed."""
    more = {"setting": 0.1} | more if evaluator == "finetune" else {"layer": "chosen"} | more
    return [row(name, seed, evaluator, value, **more) for seed, value in enumerate(values)]


def claims(rows: list[Row], *arms: str, **where: Any) -> list[dict[str, Any]]:
    found = [claim for claim in claims_of(rows, about(rows)) if claim["arms"] == list(arms)]
    return [claim for claim in found if all(claim[name] == value for name, value in where.items())]


def test_a_clear_difference_is_shown_with_scipy_s_paired_interval():
    rows = [*arm("scratch", SCRATCH), *arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    for lower, higher, low, high in (
        ("scratch", "mean_color", SCRATCH, MPP),
        ("mean_color", "supervised", MPP, SUPERVISED),
    ):
        [claim] = claims(rows, lower, higher)
        interval = stats.ttest_rel(high, low).confidence_interval(0.95)
        assert [claim["low"], claim["high"]] == pytest.approx([interval.low, interval.high], abs=1e-12)
        assert claim["mean"] == pytest.approx(np.mean(high) - np.mean(low), abs=1e-12)
        assert (claim["verdict"], claim["seeds"]) == (SHOWN, [0, 1, 2])
        for number in (claim["mean"], claim["low"], claim["high"]):
            assert f"{100 * number:+.1f}" in claim["text"]
    [order] = claims(rows, "scratch", "mean_color", "supervised")
    assert order["verdict"] == SHOWN


def test_pairs_are_by_seed_and_not_by_the_order_of_the_rows():
    """Seeds that go up and down together show what no mean would."""
    rows = [*arm("scratch", (0.30, 0.50, 0.70)), *reversed(arm("mean_color", (0.32, 0.521, 0.719)))]
    [claim] = claims(rows, "scratch", "mean_color")
    assert claim["verdict"] == SHOWN


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        ((0.5, 0.6, 0.55), (0.58, 0.57, 0.6), OPEN),
        ((0.58, 0.57, 0.6), (0.5, 0.6, 0.55), OPEN),
        (MPP, SCRATCH, REVERSE),
        ((0.5, 0.6, 0.7), (0.5, 0.6, 0.7), OPEN),
        ((0.5, 0.5, 0.5), (0.75, 0.75, 0.75), OPEN),  # no spread is chance on a small test split, and no certainty
        ((0.5, 0.6, 0.7), (0.6, 0.7, 0.8), OPEN),  # which differ in their last bit
    ],
)
def test_the_verdict_is_that_of_the_interval(low: Any, high: Any, verdict: str):
    [claim] = claims([*arm("scratch", low), *arm("mean_color", high)], "scratch", "mean_color")
    assert claim["verdict"] == verdict


@pytest.mark.parametrize(
    ("scratch", "mpp", "supervised"),
    [
        (SCRATCH, MPP, (0.55, 0.68, 0.6)),  # the upper difference is not resolved
        ((0.5, 0.7, 0.6), MPP, SUPERVISED),  # nor is the lower one
        (MPP, SCRATCH, SUPERVISED),  # the wrong way round
        (SCRATCH, SUPERVISED, MPP),
    ],
)
def test_an_order_needs_both_lower_bounds_above_zero(scratch: Any, mpp: Any, supervised: Any):
    rows = [*arm("scratch", scratch), *arm("mean_color", mpp), *arm("supervised", supervised)]
    [order] = claims(rows, "scratch", "mean_color", "supervised")
    assert order["verdict"] == OPEN


def test_seeds_that_only_one_arm_has_are_left_out_of_the_pairs():
    rows = [*arm("scratch", SCRATCH), *arm("mean_color", MPP)]
    rows = [each for each in rows if (each.arm, each.seed) != ("mean_color", 1)]
    rows.append(row("mean_color", 7, "finetune", 0.99, 0.1))
    [claim] = claims(rows, "scratch", "mean_color")
    assert claim["seeds"] == [0, 2]
    interval = stats.ttest_rel([MPP[0], MPP[2]], [SCRATCH[0], SCRATCH[2]]).confidence_interval(0.95)
    assert [claim["low"], claim["high"]] == pytest.approx([interval.low, interval.high], abs=1e-12)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_common_seeds_give_a_difference_without_a_verdict(seeds: int):
    rows = [*arm("scratch", SCRATCH[:seeds]), *arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    [claim] = claims(rows, "scratch", "mean_color")
    assert claim["verdict"] == WITHHELD
    assert claim["mean"] == pytest.approx(np.mean(MPP[:seeds]) - np.mean(SCRATCH[:seeds]))
    assert (claim["low"] is None) == (claim["high"] is None) == (seeds == 1)
    assert f"{100 * claim['mean']:+.1f} points" in claim["text"]
    assert not claims(rows, "scratch", "mean_color", "supervised"), "an order is nothing but a verdict"
    [judged] = claims(rows, "mean_color", "supervised")
    assert judged["verdict"] == SHOWN, "of three seeds in common"


def test_the_answer_is_one_sentence_from_the_side_of_the_arm_that_learns():
    rows = [*arm("scratch", SCRATCH), *arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    rows += [*arm("supervised", MPP, "knn", setting=20), *arm("mean_color", MPP, "knn", setting=20)]
    found = claims_of(rows, about(rows))
    gain, gap = (100 * (np.mean(one) - np.mean(other)) for one, other in ((MPP, SCRATCH), (SUPERVISED, MPP)))
    assert answer_of(found, about(rows)) == (
        f"In points of accuracy, “MPP, mean colour” is at {signed(gain)} against “scratch, total budget” (shown) and "
        f"{signed(-gap)} to 0.0 against “supervised” (not resolved by 1, shown by 1)."
    )
    better = [*arm("mean_color", SUPERVISED), *arm("supervised", MPP)]
    assert f"is at {signed(gap)} against “supervised” (shown)." in answer_of(
        claims_of(better, about(better)), about(better)
    )
    few = [each for each in rows if each.seed < 2]
    assert "(no verdict: 2 seeds)" in answer_of(claims_of(few, about(few)), about(few))
    assert answer_of([], {}) == ""
    assert "no verdicts" in note_of(claims_of(few, about(few)))


def test_missing_arms_make_no_claim():
    rows = [*arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    assert [claim["arms"] for claim in claims_of(rows, about(rows))] == [["mean_color", "supervised"]]


def test_frozen_features_are_compared_with_random_weights_and_fine_tuning_with_scratch_too():
    rows = [*arm("scratch", SCRATCH), *arm("mean_color", MPP), *arm("random", (0.4, 0.45, 0.41))]
    rows += [*arm("mean_color", MPP, "knn", setting=20), *arm("random", SCRATCH, "knn", setting=20)]
    rows += [*arm("raw_pixels", (0.30, 0.33, 0.31), "knn", setting=20)]
    found = {(claim["evaluator"], *claim["arms"]) for claim in claims_of(rows, about(rows))}
    assert found == {
        ("knn", "random", "mean_color"), ("knn", "raw_pixels", "mean_color"),
        ("finetune", "scratch", "mean_color"), ("finetune", "random", "mean_color"),
    }  # fmt: skip


def test_only_the_first_k_of_knn_counts_and_layers_are_separate():
    rows = [r for k in (20, 10) for r in arm("mean_color", [value - k / 1000 for value in MPP], "knn", setting=k)]
    rows += arm("mean_color", [value - 0.1 for value in MPP], "knn", setting=20, layer="default")
    cells = accuracies(rows, Variant())
    assert [(m.setting, m.layer) for layer in ("chosen", "default") for m in measures(cells, layer)] == [
        (20, "chosen"), (20, "default"),
    ]  # fmt: skip
    assert [*cells["mean_color"][measures(cells)[0]].values()] == [value - 0.02 for value in MPP]


def test_variants_are_compared_within_themselves():
    rows = [*arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    rows += [*arm("mean_color", SUPERVISED, images=500), *arm("supervised", MPP, images=500)]
    found = {claim["images"]: claim for claim in claims(rows, "mean_color", "supervised")}
    assert (found[None]["verdict"], found[500]["verdict"]) == (SHOWN, REVERSE)
    assert "(500 pre-training images)" in found[500]["text"]
    assert (found[None]["headline"], found[500]["headline"]) == (True, False)


@pytest.mark.parametrize("first", ["mean_color", "full_patch"])
def test_headlines_are_few_of_the_first_self_supervised_arm_and_of_the_chosen_layer(first: str):
    rows: list[Row] = []
    for name, base in (("random", 0.3), (first, 0.5), ("mean_color_15", 0.4), ("supervised", 0.7)):
        values = [base + seed / (40 + base * 10) for seed in range(3)]
        rows += arm(name, values)
        for layer in ("chosen", "default"):
            rows += arm(name, values, "knn", setting=20, layer=layer)
            for shots in (1, 25):
                rows += arm(name, values, "few_shot", setting=shots, layer=layer)
    found = [claim for claim in claims_of(rows, about(rows)) if claim["headline"]]
    assert {(claim["evaluator"], claim["setting"]) for claim in found} == {
        ("few_shot", 25), ("knn", 20), ("finetune", 0.1),
    }  # fmt: skip
    assert all(claim["layer"] != "default" and first in claim["arms"] for claim in found)
