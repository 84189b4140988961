"""Claims: which are primary, their intervals from the stored predictions, their verdicts and words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats

from mpp.evaluation.predictions import LABELS, Predictions, read_predictions, write_predictions
from mpp.study.claims import (
    EXPLORATORY,
    OPEN,
    REVERSE,
    SHOWN,
    WITHHELD,
    answer_of,
    claims_of,
    correct,
    measure_of,
    note_of,
    primary_of,
    signed,
)
from mpp.study.results import Evidence, Measure, Row, accuracies, measures
from mpp.study.statistics import compare
from mpp.study.units import Unit, Variant
from tests.support.small_study import gap_recipe
from tests.support.study_results import about, row

IMAGES, CLASSES = 60, 3
LABELLED = np.arange(IMAGES) % CLASSES
TUNED, KNN = "finetune/0.5", "knn/5/chosen"
MEASURES = {
    TUNED: Measure("finetune", 0.5),
    KNN: Measure("knn", 5, "chosen"),
    "linear_probe/chosen": Measure("linear_probe", None, "chosen"),
    "few_shot/5/chosen": Measure("few_shot", 5, "chosen"),
}
Levels = Mapping[str, Mapping[str, Sequence[float]]]
"""Accuracies by arm, measure and seed."""


class Made:
    """Predictions of made-up units, and the rows of their accuracies."""

    def __init__(self, levels: Levels, *, variant: Variant | None = None, seed: int = 0) -> None:
        self.rows: list[Row] = []
        self.predictions: dict[Unit, Predictions] = {}
        self.add(levels, variant or Variant(), seed)

    def add(self, levels: Levels, variant: Variant, seed: int = 0) -> Made:
        rng = np.random.default_rng(seed)
        for arm, by_key in levels.items():
            for key, by_seed in by_key.items():
                for number, accuracy in enumerate(by_seed):
                    shape = (2, IMAGES) if key.startswith("few_shot") else (IMAGES,)
                    wrong = (LABELLED + rng.integers(1, CLASSES, shape)) % CLASSES
                    classes = np.where(rng.random(shape) < accuracy, LABELLED, wrong)
                    self.put(arm, number, variant, key, classes)
        return self

    def put(self, arm: str, seed: int, variant: Variant, key: str, classes: np.ndarray[Any, Any]) -> None:
        found = self.predictions.setdefault(
            Unit(arm, seed, variant), {LABELS: torch.from_numpy(LABELLED.astype(np.uint8))}
        )
        found[key] = torch.from_numpy(classes.astype(np.uint8))
        measure, fields = MEASURES[key], variant._asdict()
        fields["direction"] = "swapped" if fields.pop("swapped") else "forward"
        accuracy = float((classes == LABELLED).mean())
        self.rows.append(row(arm, seed, measure.evaluator, accuracy, measure.setting, layer=measure.layer, **fields))

    def claims(self, recipe: Any) -> list[dict[str, Any]]:
        return claims_of(self.rows, about(self.rows), Evidence(self.predictions), recipe)


def by_arms(claims: list[dict[str, Any]], *arms: str, **where: Any) -> dict[str, Any]:
    [found] = [
        claim for claim in claims
        if claim["arms"] == list(arms) and all(claim[name] == value for name, value in where.items())
    ]  # fmt: skip
    return found


SEEDS = 4
CLEAR: Levels = {
    "random": {key: [0.4] * SEEDS for key in MEASURES},
    "scratch": {TUNED: [0.45] * SEEDS},
    "mean_color": {key: [0.7] * SEEDS for key in MEASURES},
    "supervised": {key: [0.95] * SEEDS for key in MEASURES},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    return gap_recipe(tmp_path, f"study.seeds={list(range(SEEDS))}")


def triples(recipe: Any) -> list[tuple[str, str, str]]:
    return [(claim.lower, claim.higher, claim.by) for claim in primary_of(recipe)]


def test_the_primary_claims_are_those_of_the_paper_s_question_unless_the_recipe_names_others(tmp_path: Path):
    few = [("random", "mean_color", by) for by in ("knn", "linear_probe", "few_shot")]
    assert triples(gap_recipe(tmp_path)) == [
        ("scratch", "mean_color", "finetune"), ("mean_color", "supervised", "finetune"), *few,
    ]  # fmt: skip
    without = gap_recipe(tmp_path, "study.arms=[random,full_patch,mean_color,supervised]", "evaluation.knn=null")
    assert triples(without) == [
        ("random", "full_patch", "finetune"), ("full_patch", "supervised", "finetune"),
        ("random", "full_patch", "linear_probe"), ("random", "full_patch", "few_shot"),
    ]  # fmt: skip
    assert triples(gap_recipe(tmp_path, "finetuning.fractions=[]")) == few
    assert triples(gap_recipe(tmp_path, "study.arms=[random,scratch,supervised]")) == []
    own = "study.primary=[{higher: supervised, lower: random, by: knn, setting: 5}]"
    assert triples(gap_recipe(tmp_path, own)) == [("random", "supervised", "knn")]
    assert triples(gap_recipe(tmp_path, "study.primary=[]")) == []


def test_a_study_without_a_supervised_arm_has_the_other_primary_claims(tmp_path: Path):
    few = [("random", "mean_color", by) for by in ("knn", "linear_probe", "few_shot")]
    recipe = gap_recipe(tmp_path, "study.arms=[random,scratch,mean_color]")
    assert triples(recipe) == [("scratch", "mean_color", "finetune"), *few]


@pytest.mark.parametrize(("setting", "by", "expected"), [
    (None, "few_shot", Measure("few_shot", 5, "chosen")),
    (1, "few_shot", Measure("few_shot", 1, "chosen")),
    (None, "knn", Measure("knn", 5, "chosen")),
    (None, "linear_probe", Measure("linear_probe", None, "chosen")),
    (None, "finetune", Measure("finetune", 0.5)),
    (0.25, "finetune", Measure("finetune", 0.25)),
])  # fmt: skip
def test_a_claim_is_about_the_most_shots_the_first_k_and_the_first_fraction_unless_it_says_more(
    tmp_path: Path, setting: Any, by: str, expected: Measure
):
    text = f"study.primary=[{{higher: mean_color, lower: random, by: {by}, setting: {'null' if setting is None else setting}}}]"  # noqa: E501
    recipe = gap_recipe(tmp_path, text, "finetuning.fractions=[0.5,0.25]", "evaluation.knn.k=[5,3]")
    [claim] = primary_of(recipe)
    assert measure_of(claim, recipe.evaluation, recipe.finetuning.fractions) == expected


def test_clear_differences_are_shown_and_corrected_for_the_number_of_primary_claims(recipe: Any):
    claims = Made(CLEAR).claims(recipe)
    primary = [claim for claim in claims if claim["primary"]]
    assert [(*claim["arms"], claim["evaluator"]) for claim in primary] == triples(recipe)
    assert {claim["verdict"] for claim in primary} == {SHOWN}
    for claim in primary:
        larger = [other["p"] for other in primary if other["p"] <= claim["p"]]
        steps = [min(1, p * sum(other["p"] >= p for other in primary)) for p in larger]
        assert claim["adjusted_p"] == pytest.approx(max(steps))
        assert claim["detectable"] > 0
    assert claims[: len(primary)] == primary, "they come first"
    identities = [(*claim["arms"], claim["evaluator"], claim["setting"], claim["layer"]) for claim in claims]
    assert len(set(identities)) == len(identities), "no comparison is listed twice"


def test_exploratory_claims_have_an_interval_and_never_a_verdict(tmp_path: Path):
    claim = "study.primary=[{higher: mean_color, lower: random, by: knn}]"
    recipe = gap_recipe(tmp_path, claim, f"study.seeds={list(range(SEEDS))}")
    made = Made(CLEAR).add(CLEAR, Variant(images=30))
    claims = made.claims(recipe)
    [only] = [claim for claim in claims if claim["primary"]]
    assert (only["verdict"], only["adjusted_p"]) == (SHOWN, only["p"])
    others = [claim for claim in claims if not claim["primary"]]
    assert {claim["verdict"] for claim in others} == {EXPLORATORY}
    assert all(claim["low"] > 0 for claim in others if claim["arms"] == ["scratch", "mean_color"])
    assert all("adjusted_p" not in claim for claim in others)
    assert not any("shown" in claim["text"] for claim in others)
    twin = by_arms(others, "random", "mean_color", evaluator="knn", images=30)
    assert "(30 pre-training images)" in twin["text"]
    expected = {("random", "mean_color"), ("scratch", "mean_color"), ("mean_color", "supervised")}
    assert {tuple(claim["arms"]) for claim in claims if claim["images"] is None} == expected
    along = {("mean_color", "mean_color"), ("supervised", "supervised")}
    assert {tuple(claim["arms"]) for claim in claims if claim["images"] == 30} == expected | along


def test_along_an_axis_an_arm_is_compared_with_itself_as_in_the_recipe(recipe: Any):
    made = Made({"mean_color": {TUNED: [0.9] * SEEDS}}).add({"mean_color": {TUNED: [0.4] * SEEDS}}, Variant(images=30))
    [claim] = made.claims(recipe)
    right = [
        np.stack([
            (made.predictions[unit][TUNED] == made.predictions[unit][LABELS]).double().numpy()
            for unit in (Unit("mean_color", seed, variant) for seed in range(SEEDS))
        ])
        for variant in (Variant(), Variant(images=30))
    ]  # fmt: skip
    expected = compare(*right)
    assert [claim[name] for name in ("mean", "low", "high", "p")] == [
        expected.mean, expected.low, expected.high, expected.p,
    ]  # fmt: skip
    assert claim["mean"] < 0
    assert (claim["images"], claim["arms"], claim["verdict"]) == (30, ["mean_color", "mean_color"], EXPLORATORY)
    assert "(30 pre-training images): MPP, mean colour against as in the recipe: −" in claim["text"]


def test_intervals_can_be_computed_again_from_the_files_of_predictions_alone(recipe: Any, tmp_path: Path):
    made = Made({arm: {key: [level[0] + 0.05 * seed / SEEDS for seed in range(SEEDS)] for key, level in keys.items()}
                 for arm, keys in CLEAR.items()})  # fmt: skip
    for unit, found in made.predictions.items():
        path = tmp_path / str(unit)
        path.mkdir(parents=True)
        labels = found.pop(LABELS)
        write_predictions(path / "predictions.safetensors", found, labels.long())
        made.predictions[unit] = read_predictions(path / "predictions.safetensors")
    claims = made.claims(recipe)
    assert len(claims) == 4 + 4 + 1, "of three pairs by four measures, three of them of fine-tuning alone"
    for claim in claims:
        key = next(key for key, measure in MEASURES.items() if measure.evaluator == claim["evaluator"])
        right = []
        for arm in claim["arms"]:
            files = [load_file(tmp_path / arm / f"seed-{seed}" / "predictions.safetensors") for seed in claim["seeds"]]
            right.append([np.atleast_2d(file[key] == file["labels"]).mean(0) for file in files])
        gaps = np.array(right[1]) - np.array(right[0])
        seeds, images = gaps.mean(1).var(ddof=1) / SEEDS, gaps.mean(0).var(ddof=1) / IMAGES
        df = (seeds + images) ** 2 / (seeds**2 / (SEEDS - 1) + images**2 / (IMAGES - 1))
        half = stats.t.ppf(0.975, df) * math.sqrt(seeds + images)
        assert claim["mean"] == pytest.approx(gaps.mean(), abs=1e-12)
        assert [claim["low"], claim["high"]] == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=1e-12)
        assert claim["std_seeds"] == pytest.approx(gaps.mean(1).std(ddof=1))
        assert claim["std_images"] == pytest.approx(gaps.mean(0).std(ddof=1))


def test_differences_are_paired_by_seed_and_by_image(recipe: Any):
    made = Made(CLEAR)
    expected = by_arms(made.claims(recipe), "scratch", "mean_color")
    made.rows.reverse()
    again = by_arms(made.claims(recipe), "scratch", "mean_color")
    numbers = ("mean", "low", "high", "p", "seeds")
    assert [again[name] for name in numbers] == [expected[name] for name in numbers], "not by the order of the rows"

    same = Made({}, seed=1)  # an arm that is right where the other is, and on six images more
    rng = np.random.default_rng(5)
    for seed in range(SEEDS):
        right = rng.random(IMAGES) < 0.5
        more = right | (np.arange(IMAGES) < 6)
        for arm, hits in (("scratch", right), ("mean_color", more)):
            same.put(arm, seed, Variant(), TUNED, np.where(hits, LABELLED, (LABELLED + 1) % CLASSES))
    paired = by_arms(same.claims(recipe), "scratch", "mean_color")
    for seed in range(SEEDS):  # the same accuracies, but of other images
        unit = Unit("mean_color", seed)
        order = np.concatenate([np.arange(CLASSES * 10, IMAGES), np.arange(CLASSES * 10)])
        same.predictions[unit][TUNED] = same.predictions[unit][TUNED][order]
    unpaired = by_arms(same.claims(recipe), "scratch", "mean_color")
    assert unpaired["mean"] == pytest.approx(paired["mean"])
    assert unpaired["std_images"] > 1.5 * paired["std_images"]


def test_seeds_that_only_one_arm_has_are_left_out(recipe: Any):
    made = Made(CLEAR)
    made.put("mean_color", 7, Variant(), TUNED, LABELLED)
    made.rows = [each for each in made.rows if (each.arm, each.seed, each.evaluator) != ("mean_color", 1, "finetune")]
    claim = by_arms(made.claims(recipe), "scratch", "mean_color")
    assert claim["seeds"] == [0, 2, 3]
    gaps = [(made.predictions[Unit("mean_color", s)][TUNED] == made.predictions[Unit("mean_color", s)][LABELS]).float()
            - (made.predictions[Unit("scratch", s)][TUNED] == made.predictions[Unit("scratch", s)][LABELS]).float()
            for s in (0, 2, 3)]  # fmt: skip
    assert claim["mean"] == pytest.approx(float(torch.stack(gaps).mean()), abs=1e-6)


@pytest.mark.parametrize(("scratch", "mpp", "verdict"), [
    (0.3, 0.9, SHOWN), (0.9, 0.3, REVERSE), (0.6, 0.6, OPEN),
])  # fmt: skip
def test_the_verdict_of_a_primary_claim(recipe: Any, scratch: float, mpp: float, verdict: str):
    made = Made({"scratch": {TUNED: [scratch] * SEEDS}, "mean_color": {TUNED: [mpp] * SEEDS}})
    claim = by_arms(made.claims(recipe), "scratch", "mean_color")
    assert (claim["primary"], claim["verdict"]) == (True, verdict)


def test_a_p_value_that_is_small_by_itself_is_not_after_the_correction():
    def claim(p: float, mean: float = 0.02) -> dict[str, Any]:
        numbers = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "std_seeds": 0.01, "std_images": 0.1, "df": 5}
        return {"p": p, "seeds": [0, 1, 2], "verdict": EXPLORATORY, **numbers}

    claims = [claim(0.03), claim(0.2), claim(0.9), claim(0.001, -0.02)]
    correct(claims, len(claims), (0, 1, 2))
    assert [each["verdict"] for each in claims] == [OPEN, OPEN, OPEN, REVERSE]
    assert [each["adjusted_p"] for each in claims] == pytest.approx([0.09, 0.4, 0.9, 0.004])
    alone = [claim(0.03)]
    correct(alone, 1, (0, 1, 2))
    assert alone[0]["verdict"] == SHOWN
    unfinished = [claim(0.03)]
    correct(unfinished, 4, (0, 1, 2))
    assert (unfinished[0]["verdict"], unfinished[0]["adjusted_p"]) == (OPEN, pytest.approx(0.12)), "of four named"
    early = [claim(1e-9)]
    correct(early, 1, (0, 1, 2, 3))
    assert early[0]["verdict"] == WITHHELD, "a verdict before all seeds are there would be one of several looks"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_common_seeds_give_a_difference_without_a_verdict(recipe: Any, seeds: int):
    made = Made({arm: {key: level[:seeds] for key, level in keys.items()} for arm, keys in CLEAR.items()})
    claim = by_arms(made.claims(recipe), "scratch", "mean_color")
    assert (claim["verdict"], claim["adjusted_p"], claim["detectable"]) == (WITHHELD, None, None)
    assert (claim["low"] is None) == (claim["high"] is None) == (seeds == 1)
    assert f"{signed(100 * claim['mean'])} points" in claim["text"]
    by_seed = accuracies(made.rows, Variant())
    means = [np.mean(list(by_seed[arm][MEASURES[TUNED]].values())) for arm in ("scratch", "mean_color")]
    assert claim["mean"] == pytest.approx(means[1] - means[0])


def test_a_claim_in_words(recipe: Any):
    claims = Made(CLEAR).claims(recipe)
    claim = by_arms(claims, "scratch", "mean_color")
    mean, low, high = (signed(100 * claim[name]) for name in ("mean", "low", "high"))
    assert claim["text"] == (
        f"fine-tuned, 50 % of labels: MPP, mean colour against scratch, total budget: {mean} points [{low}, {high}]"
    )
    assert by_arms(claims, "random", "mean_color", evaluator="few_shot")["text"].startswith("5-shot: MPP, mean colour")
    assert [signed(each) for each in (3.94, -2.26, 0.01, -0.01)] == ["+3.9", "−2.3", "0.0", "0.0"]


def test_the_answer_goes_from_the_floor_to_what_was_learnt_and_on_to_supervised(recipe: Any):
    made = Made(CLEAR)
    claims, arms = made.claims(recipe), about(made.rows)
    cells = accuracies(made.rows, Variant())

    def percent(arm: str) -> str:
        return f"{100 * np.mean(list(cells[arm][MEASURES[TUNED]].values())):.1f} %"

    def gap(*pair: str) -> str:
        claim = by_arms(claims, *pair, evaluator="finetune")
        mean, low, high = (signed(100 * claim[name]) for name in ("mean", "low", "high"))
        against = arms[pair[0]]["title"]
        return f"{mean} points [{low}, {high}] against “{against}”, {claim['verdict']} (4 seeds)"

    assert answer_of(claims, arms, made.rows) == [
        f"Fine-tuned, 50 % of labels, “scratch, total budget” is right on {percent('scratch')} of the test images.",
        f"“MPP, mean colour” is right on {percent('mean_color')}: {gap('scratch', 'mean_color')}.",
        f"“supervised” is right on {percent('supervised')}: {gap('mean_color', 'supervised')}.",
    ]
    one = [each for each in made.rows if each.seed == 0]
    found = claims_of(one, arms, Evidence(made.predictions), recipe)
    assert answer_of(found, arms, one)[1].endswith("total budget”, no verdict (1 seed).")
    assert answer_of([claim for claim in claims if not claim["primary"]], arms, made.rows) == []
    count = sum(not claim["primary"] for claim in claims)
    assert "5 primary claims" in note_of(claims)
    assert f"other {count} comparisons are exploratory" in note_of(claims)


def test_arms_without_results_make_no_claim(recipe: Any):
    made = Made({arm: CLEAR[arm] for arm in ("mean_color", "supervised")})
    assert {tuple(claim["arms"]) for claim in made.claims(recipe)} == {("mean_color", "supervised")}


def test_only_the_first_k_of_knn_counts_and_layers_are_separate():
    rows = [row("mean_color", s, "knn", 0.6 - k / 1000, k, layer="chosen") for k in (20, 10) for s in range(3)]
    rows += [row("mean_color", s, "knn", 0.5, 20, layer="default") for s in range(3)]
    cells = accuracies(rows, Variant())
    assert [(m.setting, m.layer) for layer in ("chosen", "default") for m in measures(cells, layer)] == [
        (20, "chosen"), (20, "default"),
    ]  # fmt: skip
    assert [*cells["mean_color"][measures(cells)[0]].values()] == [0.58] * 3


def test_predictions_of_the_default_layer_stand_for_the_chosen_one_where_it_is_the_same():
    right = torch.tensor([0, 1, 2], dtype=torch.uint8)
    found = {LABELS: right, "knn/5/default": torch.tensor([0, 1, 1], dtype=torch.uint8)}
    evidence = Evidence({Unit("random", 0): found})
    for layer in ("chosen", "default"):
        assert evidence.of("random", 0, Variant(), Measure("knn", 5, layer)).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match=r"random/seed-0 has no predictions of linear_probe/chosen"):
        evidence.of("random", 0, Variant(), Measure("linear_probe", None, "chosen"))
