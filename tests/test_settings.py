"""Settings know where in a recipe they are, and errors name them by that."""

from __future__ import annotations

import pickle
import pydoc
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mpp.encoder.settings import EncoderSettings
from mpp.objective.corruption import Corruption
from mpp.objective.targets import DownsizedPatch, FullPatch, MeanColor
from mpp.recipe import load_recipe, open_recipe
from mpp.settings import SettingError
from mpp.study.unit_recipes import recipes_of
from mpp.study.units import unit_named
from mpp.training.optimizer import make_optimizer

RECIPES = Path(__file__).parents[1] / "recipes"


def test_every_section_of_a_loaded_recipe_knows_its_dotted_path():
    recipe = load_recipe(RECIPES / "mean_color.yaml")
    assert recipe.location == ""
    assert recipe.objective.target.location == "objective.target"
    assert recipe.training.duration.location == "training.duration"
    assert recipe.hub.location == "hub", "a default, too"
    copied = recipe.encoder.model_copy(update={"pool": "avg"})
    assert copied.location == "encoder"
    assert pickle.loads(pickle.dumps(copied)).location == "encoder"


def test_a_location_is_no_part_of_the_settings_and_defaults_keep_none():
    recipe = load_recipe(RECIPES / "mean_color.yaml")
    assert recipe.objective.target == MeanColor()
    assert hash(recipe.objective.target) == hash(MeanColor())
    assert repr(recipe.objective.target) == repr(MeanColor())
    assert "location" not in recipe.model_dump_json()
    assert type(recipe)(command="pretrain", output_dir="x", objective=recipe.objective).hub.location == ""


def test_recipes_that_a_study_composes_report_the_study_s_own_settings():
    recipe = load_recipe(
        RECIPES / "gap.yaml", ["study.sizes={big: {arguments: {depth: 6}}}", "study.axis_arms=[mean_color]"]
    )
    recipes = recipes_of(recipe, unit_named(recipe, "mean_color/seed-1"))
    assert recipes.pretrain is not None
    assert recipes.evaluate is not None
    assert recipes.pretrain.data.location == "upstream"
    assert recipes.pretrain.training.location == "pretraining.training"
    assert recipes.evaluate.data.location == "downstream"
    assert recipes.evaluate.encoder.location == "encoder"
    assert recipes.evaluate.knn is not None
    assert recipes.evaluate.knn.location == "evaluation.knn"
    big = recipes_of(recipe, unit_named(recipe, "size-big/mean_color/seed-1")).pretrain
    assert big is not None
    assert big.encoder.location == "study.sizes.big"
    tuned = next(iter(recipes.finetune.values()))
    assert tuned.optimizer.location == "finetuning.optimizer"


def test_what_a_room_refuses_is_reported_with_file_line_and_value(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "command: pretrain\noutput_dir: x\ndata: {image_size: 15}\nobjective: {kind: masked_patch}\n"
        "encoder:\n  patch_size: 4\noptimizer:\n  lr: 1e-3\n"
    )
    document, recipe = open_recipe(path, ["optimizer.name=adamm"], "pretrain")
    with pytest.raises(SettingError) as caught:
        recipe.encoder.build(recipe.data.image_size, recipe.data)
    assert set(caught.value.complaints) == {"data.image_size"}
    assert str(caught.value).startswith("data.image_size 15 is not a multiple of the patch size 4")
    assert str(document.problems_of(caught.value)[0]).startswith(f"{path}:3: data.image_size\n    15 is not a multiple")
    with pytest.raises(SettingError) as caught:
        make_optimizer(nn.Linear(1, 1), recipe.optimizer)
    assert str(document.problems_of(caught.value)[0]).startswith("command line: optimizer.name\n    'adamm' is not one")


def test_settings_of_no_recipe_give_their_names_alone():
    with pytest.raises(SettingError, match=r"^cells is 9, but a patch is only 4 pixels a side"):
        DownsizedPatch(cells=9).outputs(4)
    with pytest.raises(SettingError, match=r"^source: .*/no/such/run"):
        EncoderSettings(source="/no/such/run").build(32)


@pytest.mark.parametrize(
    ("settings", "values", "said"),
    [
        (MeanColor, {"bits": 9}, "bits: found 9; allowed: integer, from 1 to 4"),
        (Corruption, {"fraction": 2}, "fraction: found 2; allowed: number, above 0 and at most 1"),
        (Corruption, {"mask": 0.5}, "mask, swap and keep must add up to 1; found 0.7"),
        (DownsizedPatch, {"cells": "x"}, "cells: found 'x'; allowed: integer, at least 1"),
        (FullPatch, {"normalize": "maybe"}, "normalize: found 'maybe'; allowed: true or false"),
        (FullPatch, {"normalise": True}, "normalise is no setting of FullPatch; did you mean normalize?"),
    ],
)
def test_wrong_arguments_in_python_are_refused_in_plain_words(settings: Any, values: dict[str, Any], said: str):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        settings(**values)
    assert str(caught.value) == said


@pytest.mark.parametrize("settings", [MeanColor, DownsizedPatch, FullPatch, Corruption])
def test_help_is_short_and_explains_every_setting(settings: Any):
    text = pydoc.plain(pydoc.render_doc(settings))
    assert len(text.splitlines()) < 85
    assert "model_" not in text
    assert "__pydantic" not in text
    for name, field in settings.model_fields.items():
        assert f"{name}: " in text
        assert " ".join(field.description.split())[:40] in text
