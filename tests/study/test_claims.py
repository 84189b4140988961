"""From outcomes of units to claims: paired by seed, and claimed only where the intervals say so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mpp.study.claims import metrics_of, summarize

TUNED = "fine-tuned, 10 % of labels"


def outcome(
    arm: str,
    seed: int,
    tuned: float | None = None,
    knn: float | None = None,
    shots: dict[str, float] | None = None,
    default: float = 0.0,
    **variant: Any,
) -> dict[str, Any]:
    """What `unit.json` holds, as far as it matters here; `default` is what the default place scores less."""
    scores: dict[str, Any] = {}
    if knn is not None:
        scores["knn"] = {"headline": {"accuracy": knn}, "default": {"accuracy": knn - default}}
    if shots is not None:
        few = {which: {"shots": {count: {"mean": value - less} for count, value in shots.items()}}
               for which, less in (("headline", 0.0), ("default", default))}  # fmt: skip
        scores["few_shot"] = few
    return {
        "name": f"{arm}/seed-{seed}", "arm": arm, "seed": seed, "back": False, "images": None, "size": None,
        **variant,
        "pretraining": None,
        "evaluation": {"scores": scores} if scores else None,
        "finetuning": {} if tuned is None else {"0.1": {"test": {"accuracy": tuned}}},
    }  # fmt: skip


def arm(name: str, accuracies: Iterable[float], **variant: Any) -> list[dict[str, Any]]:
    return [outcome(name, seed, tuned, **variant) for seed, tuned in enumerate(accuracies)]


def claims(units: list[dict[str, Any]], *arms: str, metric: str = TUNED) -> list[dict[str, Any]]:
    found = summarize(units)["claims"]
    return [claim for claim in found if claim["arms"] == list(arms) and claim["metric"] == metric]


SCRATCH, MPP, SUPERVISED = (0.50, 0.52, 0.48), (0.58, 0.61, 0.57), (0.70, 0.715, 0.68)


def test_a_clear_difference_is_shown_with_scipy_s_paired_interval():
    units = [*arm("scratch", SCRATCH), *arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    for lower, higher, low, high in (
        ("scratch", "mean_color", SCRATCH, MPP),
        ("mean_color", "supervised", MPP, SUPERVISED),
    ):
        [claim] = claims(units, lower, higher)
        interval = stats.ttest_rel(high, low).confidence_interval(0.95)
        assert [claim["low"], claim["high"]] == pytest.approx([interval.low, interval.high], abs=1e-12)
        assert claim["mean"] == pytest.approx(np.mean(high) - np.mean(low), abs=1e-12)
        assert claim["low"] > 0
        assert (claim["verdict"], claim["seeds"]) == ("shown", 3)
        assert claim["sentence"].endswith("shown.")
        for number in (claim["mean"], claim["low"], claim["high"]):
            assert f"{100 * number:+.1f}" in claim["sentence"]
    [order] = claims(units, "scratch", "mean_color", "supervised")
    assert order["verdict"] == "shown"


def test_pairs_are_by_seed_and_not_by_place():
    """The same accuracies in another order of units: seeds that go up and down together show what no mean would."""
    low, high = (0.30, 0.50, 0.70), (0.32, 0.521, 0.719)
    units = [*arm("scratch", low), *reversed(arm("mean_color", high))]
    [claim] = claims(units, "scratch", "mean_color")
    assert claim["verdict"] == "shown"
    [table] = summarize(units)["tables"]
    assert table["arms"]["mean_color"][TUNED]["seeds"] == [0, 1, 2]
    assert table["arms"]["mean_color"][TUNED]["accuracies"] == list(high)


def test_a_difference_within_the_noise_is_not_resolved_in_either_direction():
    for low, high in (((0.5, 0.6, 0.55), (0.58, 0.57, 0.6)), ((0.58, 0.57, 0.6), (0.5, 0.6, 0.55))):
        [claim] = claims([*arm("scratch", low), *arm("mean_color", high)], "scratch", "mean_color")
        assert claim["low"] < 0 < claim["high"]
        assert claim["verdict"] == "not resolved"
        assert claim["sentence"].endswith("not resolved.")


def test_the_other_way_round_is_said_to_be_so():
    [claim] = claims([*arm("scratch", MPP), *arm("mean_color", SCRATCH)], "scratch", "mean_color")
    assert claim["high"] < 0
    assert claim["verdict"] == "shown, the other way round"


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
    units = [*arm("scratch", scratch), *arm("mean_color", mpp), *arm("supervised", supervised)]
    [order] = claims(units, "scratch", "mean_color", "supervised")
    assert order["verdict"] == "not resolved"
    assert order["sentence"].endswith("not resolved.")


def test_equal_differences_show_nothing():
    """Three identical differences have no spread, which is chance on a small test split and no certainty."""
    [claim] = claims([*arm("scratch", (0.5, 0.6, 0.7)), *arm("mean_color", (0.5, 0.6, 0.7))], "scratch", "mean_color")
    assert claim["verdict"] == "not resolved"


def test_seeds_that_only_one_arm_has_are_left_out_of_the_pairs():
    units = [*arm("scratch", SCRATCH), *arm("mean_color", MPP)]
    units = [unit for unit in units if (unit["arm"], unit["seed"]) != ("mean_color", 1)]
    units.append(outcome("mean_color", 7, 0.99))
    [claim] = claims(units, "scratch", "mean_color")
    assert claim["seeds"] == 2
    interval = stats.ttest_rel([MPP[0], MPP[2]], [SCRATCH[0], SCRATCH[2]]).confidence_interval(0.95)
    assert [claim["low"], claim["high"]] == pytest.approx([interval.low, interval.high], abs=1e-12)


def test_one_common_seed_makes_no_claim_but_a_table():
    units = [*arm("scratch", (0.5,)), *arm("mean_color", MPP)]
    found = summarize(units)
    assert not claims(units, "scratch", "mean_color")
    cell = found["tables"][0]["arms"]["scratch"][TUNED]
    assert (cell["accuracies"], cell["mean"], cell["std"]) == ([0.5], 0.5, None)


def test_arms_that_are_missing_leave_the_other_claims():
    units = [*arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    assert claims(units, "mean_color", "supervised")
    assert not claims(units, "scratch", "mean_color")
    assert not claims(units, "scratch", "mean_color", "supervised")
    assert summarize(arm("random", SCRATCH))["claims"] == []


def test_means_and_deviations_are_over_the_seeds():
    [table] = summarize(arm("mean_color", MPP))["tables"]
    cell = table["arms"]["mean_color"][TUNED]
    assert cell["mean"] == pytest.approx(np.mean(MPP), abs=1e-12)
    assert cell["std"] == pytest.approx(np.std(MPP, ddof=1), abs=1e-12)


def test_frozen_features_are_compared_with_random_weights_and_fine_tuning_with_scratch():
    units = []
    for seed in range(3):
        units += [
            outcome("random", seed, 0.4 + seed / 50, knn=0.30 + seed / 100),
            outcome("scratch", seed, 0.5 + seed / 60),
            outcome("mean_color", seed, 0.6 + seed / 40, knn=0.45 + seed / 90),
            outcome("supervised", seed, 0.7 + seed / 45, knn=0.60 + seed / 70),
        ]
    assert [claim["verdict"] for claim in claims(units, "random", "mean_color", "supervised", metric="kNN")] == [
        "shown"
    ]
    assert [claim["verdict"] for claim in claims(units, "scratch", "mean_color", "supervised")] == ["shown"]
    assert claims(units, "random", "mean_color")
    assert not claims(units, "scratch", "mean_color", metric="kNN")


def test_a_control_is_compared_seed_by_seed_too():
    """Which labelled images there are depends on the seed, whatever they are judged by."""
    controls, learnt = (0.30, 0.33, 0.31), (0.41, 0.42, 0.44)
    units = [outcome("raw_pixels", seed, knn=value) for seed, value in enumerate(controls)]
    units += [outcome("mean_color", seed, knn=value) for seed, value in enumerate(learnt)]
    [claim] = claims(units, "raw_pixels", "mean_color", metric="kNN")
    interval = stats.ttest_1samp(np.subtract(learnt, controls), 0).confidence_interval(0.95)
    assert [claim["low"], claim["high"]] == pytest.approx([interval.low, interval.high], abs=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_differences_that_are_all_equal_resolve_nothing_and_neither_does_their_order(exact: bool):
    """0.6 − 0.5 and 0.7 − 0.6 differ in their last bit."""
    low = (0.5, 0.5, 0.5) if exact else (0.5, 0.6, 0.7)
    arms = {"scratch": 0.0, "mean_color": 0.25 if exact else 0.1, "supervised": 0.375 if exact else 0.2}
    units = [outcome(name, seed, at + more) for name, more in arms.items() for seed, at in enumerate(low)]
    verdicts = {tuple(claim["arms"]): claim["verdict"] for claim in summarize(units)["claims"]}
    assert verdicts[("scratch", "mean_color")] == "not resolved"
    assert verdicts[("mean_color", "supervised")] == "not resolved"
    assert verdicts[("scratch", "mean_color", "supervised")] == "not resolved"


def test_metrics_tell_the_chosen_place_from_the_default_one():
    found = metrics_of(outcome("mean_color", 0, 0.6, knn=0.5, shots={"1": 0.3, "25": 0.7}, default=0.1))
    assert found == pytest.approx(
        {"1-shot": 0.3, "25-shot": 0.7, "kNN": 0.5, "1-shot, default": 0.2, "25-shot, default": 0.6,
         "kNN, default": 0.4, TUNED: 0.6}
    )  # fmt: skip


def test_variants_are_compared_within_themselves():
    units = [*arm("mean_color", MPP), *arm("supervised", SUPERVISED)]
    units += [*arm("mean_color", SUPERVISED, images=500), *arm("supervised", MPP, images=500)]
    found = summarize(units)
    assert [table["variant"] for table in found["tables"]] == ["", "images=500"]
    by_variant = {claim["variant"]: claim for claim in claims(units, "mean_color", "supervised")}
    assert by_variant[""]["verdict"] == "shown"
    assert by_variant["images=500"]["verdict"] == "shown, the other way round"
    assert "(images=500)" in by_variant["images=500"]["sentence"]
    assert by_variant[""]["headline"]
    assert not by_variant["images=500"]["headline"]


def test_headlines_are_few_and_leave_out_the_default_place():
    units = []
    for seed in range(3):
        for name, base in (("random", 0.3), ("mean_color", 0.5), ("downsized", 0.4), ("supervised", 0.7)):
            scores = {"1": base - 0.1 + seed / 50, "25": base + seed / (40 + base * 10)}
            units.append(outcome(name, seed, base, knn=base + seed / 30, shots=scores, default=0.05))
    told = [claim for claim in summarize(units)["claims"] if claim["headline"]]
    assert {claim["metric"] for claim in told} == {"25-shot", "kNN", TUNED}
    assert all("downsized" not in claim["arms"] for claim in told)


def test_the_comparisons_that_are_counted_have_an_interval_each():
    levels = {"random": 0.3, "scratch": 0.35, "mean_color": 0.5, "supervised": 0.7}
    units = [outcome(arm, seed, base, knn=base + seed / 30) for seed in range(3) for arm, base in levels.items()]
    found = summarize(units)
    assert any("low" not in claim for claim in found["claims"]), "orders have none"
    assert found["note"].startswith(f"{sum('low' in claim for claim in found['claims'])} comparisons")


def test_a_study_without_mean_colour_has_headlines_of_the_first_target_that_it_has():
    units = [
        outcome(name, seed, base, knn=base + seed / 30)
        for seed in range(3)
        for name, base in (("random", 0.3), ("full_patch", 0.5), ("mean_color_15", 0.4), ("supervised", 0.7))
    ]
    told = [claim for claim in summarize(units)["claims"] if claim["headline"]]
    assert {claim["metric"] for claim in told} == {"kNN", TUNED}
    assert all("full_patch" in claim["arms"] for claim in told)
