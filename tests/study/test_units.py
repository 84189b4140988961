"""What each unit of a study runs: arms differ in what they are meant to, and in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mpp
from mpp.commands.pretrain import make_objective
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
from mpp.recipe import PretrainRecipe, differences
from mpp.study.units import Unit, Variant, recipes_of, unit_named, units_of
from tests.support.downstream import SIZE, tinted_data

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


def test_the_scale_is_that_of_pre_training_alone():
    recipe = load("gap.yaml")
    study = recipe.study.model_copy(update={"scale": 0.5})
    short = recipe.model_copy(update={"study": study})
    before, after = (recipes_of(each, Unit("mean_color", 0)) for each in (recipe, short))
    assert before.pretrain is not None
    assert after.pretrain is not None
    lengths = [
        (each.training.duration.steps, each.optimizer.warmup.steps) for each in (before.pretrain, after.pretrain)
    ]
    assert lengths == [(800, 50), (400, 25)]
    assert not differ(before.finetune["0.1"], after.finetune["0.1"])
    scratch = recipes_of(short, Unit("scratch", 0)).finetune["0.1"]
    assert scratch.training.duration.images == 64 * (400 + 100)


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
    recipe = load("gap.yaml", own, "study.axis_arms=[]", "pretraining.optimizer.weight_decay=0")
    found = recipes_of(recipe, Unit("mine", 0)).pretrain
    assert found is not None
    assert (found.optimizer.name, found.optimizer.weight_decay) == ("adam", 0)
    with pytest.raises(ValueError, match=r"study\.arms[\s\S]*mine: [\s\S]*adam with weight_decay 0\.05"):
        load("gap.yaml", own, "study.axis_arms=[]")
