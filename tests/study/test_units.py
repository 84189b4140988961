"""What each unit of a study runs: arms differ in what they are meant to, and in nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpp
from mpp.commands.pretrain import make_objective
from mpp.data.label_subsets import fraction_rows
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
from mpp.recipe import PretrainRecipe, differences
from mpp.study.unit_recipes import recipes_of
from mpp.study.units import Trial, Tuning, Unit, Variant, pilot_units, unit_named, units_of, variants_of
from tests.support.downstream import SIZE, tinted_data
from tests.support.small_study import PILOT, gap_recipe

ROOT = Path(__file__).parents[2]


def load(name: str = "cifar10/gap.yaml", *changes: str) -> Any:
    return mpp.load_recipe(ROOT / "recipes" / name, changes)


def differ(one: Any, other: Any) -> set[str]:
    return {path for path, _, _ in differences(one, other)}


def test_the_recipes_of_arms_and_seeds_differ_where_they_are_meant_to():
    recipe = load()
    by_unit = {(unit.arm, unit.seed, unit.variant.swapped): recipes_of(recipe, unit) for unit in units_of(recipe)}
    mine = by_unit["mean_color", 0, False]
    for (arm, seed, swapped), recipes in by_unit.items():
        seeds = {"seed", "labels.seed"} if seed else set()
        draws = {"few_shot.seeds"} if seed else set()
        data = {"data.source", "data.subset"} if swapped else set()
        if recipes.pretrain is not None:
            changed = {path for path in differ(mine.pretrain, recipes.pretrain) if not path.startswith("objective.")}
            assert changed <= {"output_dir", "seed"} | data, (arm, seed)
            assert ("seed" in changed) == bool(seed)
        if recipes.evaluate is not None and arm not in ("raw_pixels", "patch_colors"):
            assert differ(mine.evaluate, recipes.evaluate) <= {"output_dir", "encoder.source"} | seeds | draws | data
        for share, finetune in recipes.finetune.items():
            longer = {"training.duration"} if arm == "scratch" else set()
            found = {p.removesuffix(".images") for p in differ(mine.finetune[share], finetune)}
            assert found <= {"output_dir", "encoder.source"} | seeds | data | longer, (arm, share)


def test_no_two_seeds_of_a_study_share_a_few_shot_draw():
    recipe = load()
    draws = [
        recipes_of(recipe, Unit("mean_color", seed)).evaluate.few_shot.seeds  # pyright: ignore[reportOptionalMemberAccess]
        for seed in (0, 1, 7)
    ]
    assert draws == [(0, 1, 2), (1000, 1001, 1002), (7000, 7001, 7002)]


def test_labels_are_held_out_of_fine_tuning_only_where_a_search_chooses():
    for changes, dev in (({"lr": ()}, 0.0), ({"lr": (1e-3,)}, 0.1)):
        recipe = load()
        part = recipe.finetuning
        search = part.search.model_copy(update=changes)
        recipe = recipe.model_copy(update={"finetuning": part.model_copy(update={"search": search})})
        found = recipes_of(recipe, Unit("mean_color", 0)).finetune
        assert {each.labels.dev for each in found.values()} == {dev}


@pytest.mark.parametrize(("change", "variant"), [
    ("study.scale=0.5", Variant()), ("study.lengths=[0.5]", Variant(length=0.5)),
])  # fmt: skip
def test_the_length_is_that_of_pre_training_alone(tmp_path: Path, change: str, variant: Variant):
    recipe, short = (gap_recipe(tmp_path, *changes) for changes in ((), (change,)))
    before, after = recipes_of(recipe, Unit("mean_color", 0)), recipes_of(short, Unit("mean_color", 0, variant))
    assert before.pretrain is not None
    assert after.pretrain is not None
    lengths = [
        (each.training.duration.steps, each.optimizer.warmup.steps, each.validation.every.steps)
        for each in (before.pretrain, after.pretrain)
    ]
    assert lengths == [(12, 2, 4), (6, 1, 2)]
    assert differ(before.finetune[Tuning(0.5)], after.finetune[Tuning(0.5)]) <= {"output_dir", "encoder.source"}
    if variant == Variant():
        scratch = recipes_of(short, Unit("scratch", 0)).finetune[Tuning(0.5)]
        assert scratch.training.duration.images == 16 * 6 + 8 * 12, "the total budget is shorter by as much"


def test_the_swapped_direction_exchanges_the_data():
    recipe = load()
    unit = unit_named(recipe, "swapped/mean_color/seed-1")
    assert unit == Unit("mean_color", 1, Variant(swapped=True))
    recipes = recipes_of(recipe, unit)
    assert recipes.pretrain is not None
    assert recipes.evaluate is not None
    assert recipes.pretrain.data == recipe.downstream
    assert dict(recipes.evaluate.data) == dict(recipe.upstream)
    assert recipes.evaluate.data.location == "upstream"


def test_arms_start_from_the_same_weights(tmp_path: Path):
    """Whatever head comes behind the encoder."""
    data = {"source": str(tinted_data(tmp_path, train=30, test=9)), "image_size": SIZE}
    encoder = {"patch_size": 4, "arguments": {"embed_dim": 32, "depth": 1, "num_heads": 2}}
    rows = open_splits(DataSettings(**data), 0, labelled=True).train
    made = [
        make_objective(
            PretrainRecipe(command="pretrain", seed=3, output_dir="x", data=data, encoder=encoder, objective=objective),  # pyright: ignore
            rows,
        ).encoder.state_dict()
        for objective in ({"kind": "masked_patch"}, {"kind": "masked_patch", "head": "mlp"}, {"kind": "supervised"})
    ]
    for other in made[1:]:
        assert all(torch.equal(made[0][name], value) for name, value in other.items())


def test_an_arm_s_optimizer_is_checked_with_the_study_s_settings():
    own = "study.arms={mine: {objective: {kind: masked_patch}, optimizer: {name: adam}}}"
    alone = ("study.axis_arms=[]", "study.primary=[]")
    recipe = load("gap.yaml", own, *alone, "pretraining.optimizer.weight_decay=0")
    found = recipes_of(recipe, Unit("mine", 0)).pretrain
    assert found is not None
    assert (found.optimizer.name, found.optimizer.weight_decay) == ("adam", 0)
    with pytest.raises(ValueError, match=r"study\.arms[\s\S]*mine: [\s\S]*adam with weight_decay 0\.05"):
        load("gap.yaml", own, *alone)


def names(recipe: Any) -> list[str]:
    return [str(unit) for unit in units_of(recipe)]


def test_the_names_of_units_are_their_folders():
    whole = Variant(swapped=True, images=500, size="big", length=0.25, corruption=0.15, target="fine")
    assert str(Unit("mine", 3)) == "mine/seed-3"
    assert str(Unit("mine", 3, whole)) == (
        "swapped/images-500/size-big/length-0.25/corruption-0.15/target-fine/mine/seed-3"
    )
    assert str(Unit("mine", 1000, trial=Trial(3e-4))) == "pilot/mine/lr-0.0003/seed-1000"
    assert str(Unit("random", 1000, trial=Trial())) == "pilot/random/seed-1000"
    assert Tuning(0.02).folder == "finetune-0.02"
    assert Tuning(0.02, 1e-3, "avg").folder == "finetune-0.02-lr-0.001-avg"


AXES = ("study.images=[20,40]", "study.lengths=[0.5]", "study.corruptions=[0.15,0.75]",
        "study.targets={fine: {kind: downsized}}", "study.sizes={wide: {arguments: {embed_dim: 64}}}")  # fmt: skip
ALL: dict[str, tuple[Any, ...]] = {"images": (20, 40), "size": ("wide",), "length": (0.5,), "corruption": (0.15, 0.75),
                                   "target": ("fine",)}  # fmt: skip


def test_axes_depart_from_the_study_one_at_a_time_or_in_every_combination(tmp_path: Path):
    alone, crossed = gap_recipe(tmp_path, *AXES), gap_recipe(tmp_path, *AXES, "study.crossed=true")
    assert variants_of(alone.study) == [Variant(**{name: each}) for name, values in ALL.items() for each in values]
    product = {
        Variant(False, *each) for each in itertools.product(*((None, *values) for values in ALL.values()))
    } - {Variant()}  # fmt: skip
    assert len(variants_of(crossed.study)) == len(product) == 3 * 2 * 2 * 3 * 2 - 1
    assert set(variants_of(crossed.study)) == product


def test_an_axis_is_run_by_the_arms_that_it_applies_to(tmp_path: Path):
    """What is of pre-training is not varied where nothing pre-trains, nor corruption and targets of a classifier."""
    arms = "study.axis_arms=[random,scratch,mean_color,supervised]"
    for crossed in ("false", "true"):
        recipe = gap_recipe(tmp_path, *AXES, arms, f"study.crossed={crossed}")
        found: dict[Variant, set[str]] = {}
        for unit in units_of(recipe):
            found.setdefault(unit.variant, set()).add(unit.arm)
        assert found.pop(Variant()) == {"raw_pixels", "patch_colors", "random", "scratch", "mean_color", "supervised"}
        for variant in variants_of(recipe.study):
            expected = {"mean_color"}
            if variant.corruption is None and variant.target is None:
                expected |= {"supervised"}
            if variant == Variant(size=variant.size):
                expected |= {"random", "scratch"}
            assert found[variant] == expected, variant
    own = gap_recipe(tmp_path, "study.sizes={wide: {arguments: {embed_dim: 64}, arms: [random]}}", "study.seeds=[0]")
    assert [str(unit) for unit in units_of(own) if unit.variant != Variant()] == ["size-wide/random/seed-0"]


def test_what_an_axis_changes_in_the_recipes_of_a_unit(tmp_path: Path):
    recipe = gap_recipe(tmp_path, *AXES)
    own = recipes_of(recipe, Unit("mean_color", 0)).pretrain
    changes = {
        Variant(images=20): {"data.images"},
        Variant(corruption=0.15): {"objective.corruption.fraction"},
        Variant(target="fine"): {"objective.target"},
        Variant(size="wide"): {"encoder.arguments.embed_dim"},
    }
    for variant, expected in changes.items():
        recipes = recipes_of(recipe, Unit("mean_color", 0, variant))
        changed = {path for path in differ(own, recipes.pretrain) if path != "output_dir"}
        assert {next((e for e in expected if path.startswith(e)), path) for path in changed} == expected
        assert recipes.evaluate is not None
        assert recipes.evaluate.encoder.source == recipes.finetune[Tuning(0.5)].encoder.source
        assert recipes.evaluate.data.images is None, "all labelled images, whatever it was pre-trained on"


GRID = (PILOT, "finetuning.fractions=[0.5,1]", "study.pilot.pools=[token,avg]")


def test_the_pilot_tries_the_same_grid_for_every_arm(tmp_path: Path):
    recipe = gap_recipe(tmp_path, *GRID)
    units = pilot_units(recipe)
    assert {unit.seed for unit in units} == {1000}
    tunings = [Tuning(*each) for each in itertools.product((0.5, 1.0), (1e-3, 1e-2), ("token", "avg"))]
    for arm, rates in {"random": [None], "scratch": [None], "mean_color": [1e-3, 3e-3],
                       "supervised": [1e-3, 3e-3]}.items():  # fmt: skip
        own = [unit for unit in units if unit.arm == arm]
        assert [unit.trial for unit in own] == [Trial(lr) for lr in rates]
        for unit in own:
            recipes = recipes_of(recipe, unit)
            assert set(recipes.finetune) == set(tunings)
            assert recipes.evaluate is None, "where something is fine-tuned, that decides"
            for tuning, each in recipes.finetune.items():
                assert (each.optimizer.lr, each.encoder.pool) == (tuning.lr, tuning.pool)
                assert each.labels.fraction == tuning.fraction
            if recipes.pretrain is not None:
                assert unit.trial is not None
                assert recipes.pretrain.optimizer.lr == unit.trial.lr
    assert len(units) == 1 + 1 + 2 + 2
    assert "pilot/scratch/seed-1000" in map(str, units)
    assert unit_named(recipe, "pilot/mean_color/lr-0.003/seed-1000").trial == Trial(3e-3)
    assert not any(unit.trial for unit in units_of(recipe))


def test_a_pilot_may_be_shorter_in_pre_training_and_in_a_total_budget(tmp_path: Path):
    recipe = gap_recipe(tmp_path, PILOT, "study.pilot.length=0.5")
    of = {unit.arm: recipes_of(recipe, unit) for unit in pilot_units(recipe)}
    assert of["mean_color"].pretrain is not None
    assert of["mean_color"].pretrain.training.duration.steps == 6
    lengths = {arm: [each.training.duration for each in recipes.finetune.values()] for arm, recipes in of.items()}
    assert {each.steps for each in lengths["mean_color"]} == {12}
    assert {each.images for each in lengths["scratch"]} == {16 * 6 + 8 * 12}
    after = recipes_of(recipe, Unit("mean_color", 0)).pretrain
    assert after is not None
    assert after.training.duration.steps == 12


def test_what_the_pilot_chose_is_in_the_recipes_of_every_seed(tmp_path: Path):
    chosen = ("study.choices={mean_color: {lr: 3.0e-3, finetuning: {'0.5': {lr: 1.0e-2, pool: avg}, "
              "'1': {lr: 1.0e-3, pool: token}}}, scratch: {finetuning: {'0.5': {lr: 1.0e-2}}}}")  # fmt: skip
    bare, recipe = gap_recipe(tmp_path, *GRID), gap_recipe(tmp_path, *GRID, chosen)
    for seed in (0, 1):
        recipes = recipes_of(recipe, Unit("mean_color", seed))
        assert recipes.pretrain is not None
        assert recipes.pretrain.optimizer.lr == 3e-3
        tuned = {t.fraction: (each.optimizer.lr, each.encoder.pool) for t, each in recipes.finetune.items()}
        assert tuned == {0.5: (1e-2, "avg"), 1.0: (1e-3, "token")}
        own = recipes_of(recipe, Unit("scratch", seed)).finetune
        assert {t.fraction: each.optimizer.lr for t, each in own.items()} == {0.5: 1e-2, 1.0: 3e-3}
        for arm in ("random", "supervised"):
            with_it, without = (recipes_of(each, Unit(arm, seed)).plain() for each in (recipe, bare))
            assert with_it == without
    sized = gap_recipe(tmp_path, *GRID, chosen, "study.lengths=[0.5]")
    shorter = recipes_of(sized, Unit("mean_color", 0, Variant(length=0.5))).pretrain
    assert shorter is not None
    assert shorter.optimizer.lr == 3e-3, "along an axis too"
    for unit in pilot_units(recipe):
        assert recipes_of(recipe, unit).plain() == recipes_of(bare, unit).plain(), "it chooses nothing in the pilot"


def test_scratch_is_stopped_early_and_regularised_as_all_others(tmp_path: Path):
    fair = ("finetuning.early_stopping.patience=3", "finetuning.dev=0.2", "finetuning.drop_path=0.1",
            "finetuning.augmentation.mixup=0.8", "finetuning.validation.every.steps=4")  # fmt: skip
    recipe = gap_recipe(tmp_path, *fair, PILOT)
    for units in (pilot_units(recipe), [Unit(arm, 0) for arm in ("random", "scratch", "mean_color", "supervised")]):
        scratch = next(recipes_of(recipe, unit) for unit in units if unit.arm == "scratch").finetune
        other = next(recipes_of(recipe, unit) for unit in units if unit.arm == "mean_color").finetune
        assert scratch.keys() == other.keys()
        for tuning, each in scratch.items():
            assert each.early_stopping.patience == 3
            assert each.labels.dev == 0.2
            changed = {path.removesuffix(".images").removesuffix(".steps") for path in differ(each, other[tuning])}
            assert changed <= {"output_dir", "encoder.source", "training.duration"}


def sources(recipe: Any, units: Any) -> tuple[set[int], set[int]]:
    """Rows of the file that these units train on, and those that they are evaluated on."""
    trained, tested = set[int](), set[int]()
    for unit in units:
        recipes = recipes_of(recipe, unit)
        before = [recipes.pretrain] if recipes.pretrain is not None else []
        after = [each for each in (recipes.evaluate, *recipes.finetune.values()) if each is not None]
        for each in (*before, *after):
            held = () if each in before else ("test", "validation")
            splits = open_splits(each.data, unit.seed, labelled=bool(held), **({"held_out": held} if held else {}))
            trained |= set(splits.train.source_rows.tolist())
            if held:
                tested |= set(splits.validation.source_rows.tolist())
    return trained, tested


def real(tmp_path: Path, upstream: str, downstream: str, *changes: str) -> Any:
    sections = (f"{part}={{{text}, image_size: {SIZE}, workers: 0}}"
                for part, text in (("upstream", upstream), ("downstream", downstream)))  # fmt: skip
    return gap_recipe(tmp_path, *sections, *changes)


def test_the_pilot_is_judged_on_reserved_rows_on_which_nothing_trains(tmp_path: Path, tinted_images: Path):
    """Classes of one data set: its rows are those of both halves."""
    source = f"source: {tinted_images}"
    recipe = real(tmp_path, f"{source}, classes: [0]", f"{source}, classes: [1, 2]", PILOT,
                  "study.arms=[random,scratch,mean_color]", "study.axis_arms=[mean_color]")  # fmt: skip
    reserved = sources(recipe, pilot_units(recipe))[1]
    assert len(reserved) == 2 * 6, "a fifth of 30 images of each class"
    trained, tested = (
        sources(recipe, pilot_units(recipe))[0] | sources(recipe, units_of(recipe))[0],
        sources(recipe, units_of(recipe))[1],
    )
    assert not reserved & trained
    assert not reserved & tested
    assert not tested & trained
    assert len(tested) == 30, "the whole test split of two classes"
    assert len(trained) == 30 + 48, "and all other rows are trained on"
    seeds = [sources(recipe, [unit])[1] for unit in pilot_units(recipe)]
    other = real(tmp_path, f"{source}, classes: [0]", f"{source}, classes: [1, 2]", PILOT, "study.pilot.seed=77",
                 "study.arms=[random,scratch,mean_color]", "study.axis_arms=[mean_color]")  # fmt: skip
    assert all(each == reserved for each in (*seeds, sources(other, pilot_units(other))[1])), "no seed decides them"


def test_nothing_pre_trains_on_the_reserved_rows_of_the_one_data_set_of_a_study(tmp_path: Path, tinted_images: Path):
    text = f"source: {tinted_images}"
    recipe = real(tmp_path, text, text, PILOT, "study.arms=[random,scratch,mean_color]", "study.axis_arms=[mean_color]")
    trained, reserved = sources(recipe, pilot_units(recipe))
    assert len(reserved) == 18
    assert not reserved & trained


def test_labels_and_shots_of_a_unit_follow_its_seed(tmp_path: Path, tinted_images: Path):
    text = f"source: {tinted_images}"
    recipe = real(tmp_path, text.replace(str(tinted_images), "embedded"), text)
    chosen = []
    for seed in (0, 1):
        recipes = recipes_of(recipe, Unit("random", seed))
        tuned = recipes.finetune[Tuning(0.5)]
        assert recipes.evaluate is not None
        assert {tuned.seed, tuned.labels.seed, recipes.evaluate.seed, recipes.evaluate.labels.seed} == {seed}
        splits = open_splits(tuned.data, seed, labelled=True)
        chosen.append(fraction_rows(splits.train.labels, 0.5, tuned.labels.seed))
    assert not np.array_equal(*chosen)
