"""What a pilot chooses: against brute force, with ties and several shares of the labels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpp.study.pilot import Tried, choices_of, ends_of, read, tried_by
from mpp.study.settings import Choice, PilotSettings, TuningChoice
from mpp.study.unit_recipes import recipes_of
from mpp.study.units import Trial, Unit, pilot_units
from tests.support.small_study import PILOT, gap_recipe

RATES, TUNING, POOLS, FRACTIONS = (1e-4, 1e-3, 1e-2), (3e-4, 3e-3), ("token", "avg"), (0.02, 0.2)


def tuned(arm: str, lr: float | None, fraction: float, rate: float | None, pool: Any, accuracy: float) -> Tried:
    return Tried(arm, "finetune", lr, fraction, rate, pool, accuracy)


def grid(accuracy: Any, arm: str = "mine", rates: Any = RATES, fractions: Any = FRACTIONS) -> list[Tried]:
    return [
        tuned(arm, lr, fraction, rate, pool, accuracy(lr, fraction, rate, pool))
        for lr, fraction, pool, rate in itertools.product(rates, fractions, POOLS, TUNING)
    ]


def test_a_rate_at_which_a_share_of_the_labels_stays_finite_nowhere_is_no_better_for_that():
    tried = [
        tuned("mine", 1e-3, 0.02, 1e-3, None, 0.62),
        tuned("mine", 1e-3, 0.2, 1e-3, None, 0.72),
        tuned("mine", 4e-3, 0.02, 1e-3, None, 0.0)._replace(accuracy=None),
        tuned("mine", 4e-3, 0.2, 1e-3, None, 0.75),
    ]
    chosen = choices_of(tried)["mine"]
    assert (chosen.lr, set(chosen.finetuning)) == (1e-3, {"0.02", "0.2"})


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_brute_force(seed: int):
    """Coarse accuracies, so that there are ties: of equal rates the smaller one is taken."""
    rng = np.random.default_rng(seed)
    arms = {"one": RATES, "two": RATES, "random": (None,)}
    tried = [each for arm, rates in arms.items() for each in grid(lambda *_: rng.integers(0, 4) / 4, arm, rates)]
    for _ in range(2):
        found = choices_of(tried)
        assert set(found) == set(arms)
        for arm, rates in arms.items():
            best: dict[Any, dict[float, Tried]] = {}
            for lr, fraction in itertools.product(rates, FRACTIONS):
                own = [each for each in tried if (each.arm, each.lr, each.fraction) == (arm, lr, fraction)]
                top = max(each.accuracy or 0 for each in own)
                best.setdefault(lr, {})[fraction] = min(
                    (each for each in own if each.accuracy == top), key=lambda each: each.tuning_lr or 0
                )
            means = {lr: sum(each.accuracy or 0 for each in own.values()) for lr, own in best.items()}
            expected = min((lr for lr in rates if means[lr] == max(means.values())), key=lambda lr: lr or 0)
            assert found[arm].lr == expected
            for fraction in FRACTIONS:
                chosen = found[arm].finetuning[f"{fraction:g}"]
                assert chosen.lr == best[expected][fraction].tuning_lr
                accuracies = [each.accuracy for each in tried if (each.arm, each.lr, each.fraction, each.tuning_lr,
                              each.pool) == (arm, expected, fraction, chosen.lr, chosen.pool)]  # fmt: skip
                assert accuracies == [best[expected][fraction].accuracy]
        tried.sort(key=lambda each: -(each.lr or 0))  # the order in which units finished decides nothing


def test_each_share_of_the_labels_has_its_own_rate_and_pre_training_that_of_their_mean():
    table = {(1e-3, 0.02): 0.6, (1e-3, 0.2): 0.6, (1e-2, 0.02): 0.7, (1e-2, 0.2): 0.4, (1e-4, 0.02): 0.1,
             (1e-4, 0.2): 0.9}  # fmt: skip
    best = {0.02: (3e-3, "avg"), 0.2: (3e-4, "token")}
    tried = grid(lambda lr, fraction, rate, pool: table[lr, fraction] - 0.05 * ((rate, pool) != best[fraction]))
    [(arm, choice)] = choices_of(tried).items()
    assert (arm, choice.lr) == ("mine", 1e-3), "neither the best at few labels nor the best at many"
    assert choice.finetuning == {
        "0.02": TuningChoice(lr=3e-3, pool="avg"), "0.2": TuningChoice(lr=3e-4, pool="token"),
    }  # fmt: skip


def test_of_equals_the_smaller_rates_are_chosen():
    [choice] = choices_of(reversed(grid(lambda *_: 0.5))).values()
    assert choice.lr == min(RATES)
    assert {each.lr for each in choice.finetuning.values()} == {min(TUNING)}


def test_without_fine_tuning_the_frozen_features_decide_and_pre_training_counts_for_nothing():
    tried = [Tried("mine", "pretrain", lr, images_seen=192) for lr in RATES]
    tried += [Tried("mine", "evaluate", lr, accuracy=0.5 + 0.1 * (lr == 1e-3)) for lr in RATES]
    assert choices_of(tried) == {"mine": Choice(lr=1e-3)}
    assert choices_of([Tried("mine", "pretrain", lr) for lr in RATES]) == {}


def test_rows_survive_json():
    tried = grid(lambda *_: 0.25)
    assert read(json.loads(json.dumps([list(each) for each in tried]))) == tried


@pytest.mark.parametrize(("scores", "accuracy"), [
    ({"few_shot": 0.1, "knn": 0.2, "linear_probe": 0.3}, 0.3),
    ({"few_shot": 0.1, "knn": 0.2}, 0.2),
    ({"few_shot": 0.1}, 0.1),
])  # fmt: skip
def test_frozen_features_are_judged_by_the_probe_else_by_knn_else_by_few_shot(
    tmp_path: Path, scores: dict[str, float], accuracy: float
):
    """By the layer that the dev split chose."""
    recipe = gap_recipe(tmp_path, "study.pilot={lr: [1e-3,1e-2]}", "finetuning.fractions=[]")
    unit = Unit("random", 1000, trial=Trial())
    folder = tmp_path / "evaluation"
    folder.mkdir()
    found = {name: {"default": {"accuracy": 0.9}, "headline": {"accuracy": each}} for name, each in scores.items()}
    (folder / "results.json").write_text(json.dumps({"scores": found}))
    [tried] = tried_by(unit, recipes_of(recipe, unit), tmp_path)
    assert (tried.stage, tried.accuracy) == ("evaluate", accuracy)


def test_a_choice_at_an_end_of_its_grid_is_reported():
    pilot = PilotSettings(lr=RATES, finetuning_lr=(*TUNING, 3e-2))
    inner = Choice(lr=1e-3, finetuning={"0.02": TuningChoice(lr=3e-3)})
    assert ends_of(inner, pilot) == []
    ends = Choice(lr=1e-4, finetuning={"0.02": TuningChoice(lr=3e-2), "0.2": TuningChoice(lr=3e-3)})
    assert ends_of(ends, pilot) == [
        "pre-training: 0.0001 is the smallest rate of the grid",
        "fine-tuning on 2 %: 0.03 is the largest rate of the grid",
    ]
    assert ends_of(ends, PilotSettings(lr=(1e-4,), pools=("avg",))) == [], "a single rate is no choice"
    assert ends_of(Choice(finetuning={"0.2": TuningChoice(pool="avg")}), pilot) == []


def test_the_pilot_of_frozen_features_pre_trains_with_every_rate(tmp_path: Path):
    recipe = gap_recipe(tmp_path, PILOT, "finetuning.fractions=[]")
    units = pilot_units(recipe)
    assert {(unit.arm, unit.trial) for unit in units} == {
        (arm, Trial(lr)) for arm in ("mean_color", "supervised") for lr in (1e-3, 3e-3)
    }  # fmt: skip
    for unit in units:
        recipes = recipes_of(recipe, unit)
        assert recipes.evaluate is not None
        assert recipes.evaluate.data.evaluate_on == "reserved"
        assert not recipes.finetune
