"""Mistakes in a study: one clear error each, before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.downstream import SIZE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["finetuning.search.lr=[1e-3,1e-2]", "finetuning.dev=0"], ("finetuning.search chooses by a dev split",)),
        (["pretraining.optimizer.layer_decay=0.7"], ("pretraining.optimizer.layer_decay",)),
        (["evaluation={few_shot: null, knn: null, linear_probe: null}"], ("nothing to measure",)),
        (["study.sizes={big: {name: vit_nonsense}}"], ("study.sizes.big.name", "has no model 'vit_nonsense'")),
        (["encoder.patch_size=5"], ("upstream.image_size", "not a multiple of the patch size 5")),
        (["finetuning.optimizer.name=adamm"], ("finetuning.optimizer.name 'adamm' is not one of timm's",)),
        (["evaluation.few_shot.shots=[40]"], ("evaluation.few_shot.shots", "class 0 has 24 images")),
        (["evaluation.knn.k=[91]", "evaluation.by_depth=[]"], ("evaluation.knn.k", "90 training images")),
        (["pretraining.evaluation.k=[300]"], ("pretraining.evaluation.k", "48 training images", "fewer than 300")),
        (["finetuning.augmentation.mixup=0.8", "finetuning.training.batch_size=9"], ("pair the images",)),
        (
            ["downstream.source=embedded", "upstream.source=embedded:a"],
            ("upstream and downstream are both", "the labels that these arms pre-train with: supervised; leave them"),
        ),
        (
            ["upstream.source=embedded", "downstream.source=embedded", "study.arms=[mean_color]", "study.images=[9]"],
            ("downstream.source", "pre-train with: supervised"),  # an arm of the axis
        ),
        (
            ["upstream.source=embedded", "downstream.source=embedded", "study.arms=[random]", "study.both_ways=true"],
            ("study.both_ways", "there is no other direction"),
        ),
        (
            ["upstream.source=embedded", "downstream.source=embedded", "downstream.split='train[:50%]'"],
            ("are both embedded",),
        ),
        (["pretraining.checkpoint.resume=false"], ("pretraining.checkpoint.resume is false", "always resumes")),
        (["encoder.arguments.drop_rate=0.1"], ("encoder.arguments has drop_rate", "finetuning.drop_path")),
        (["study.sizes={wet: {arguments: {proj_drop_rate: 0.1}}}"], ("study.sizes.wet.arguments has proj_drop_rate",)),
        (["evaluation.labels.seed=3"], ("evaluation.labels.seed", "study.seeds")),
        (
            ["encoder.patch_size=2", "study.arms=[random,downsized]", "study.primary=[]"],
            ("study.arms", "downsized: ", "4"),
        ),
        (["downstream.split=trian"], ("downstream.split 'trian' cannot be taken",)),
        (["study.images=[61]"], ("study.images", "61 are more than the 60 images")),
        (["study.arms=[]", "study.controls=false"], ("study.arms is empty",)),
        (["evaluation.few_shot.seeds=[0,1000]"], ("evaluation.few_shot.seeds", "below 1000")),
        (
            ["study.primary=[{higher: mean_color, lower: scratch, by: knn}]"],
            ("mean_color > scratch by knn: scratch has no frozen features",),
        ),
        (
            ["study.primary=[{higher: mean_color, lower: raw_pixels, by: finetune}]"],
            ("mean_color > raw_pixels by finetune: raw_pixels is not fine-tuned",),
        ),
        (
            ["study.primary=[{higher: random, lower: random, by: knn}]"],
            ("random > random by knn: the arms of a claim differ",),
        ),
        (["study.arms=[random,nonsense]"], ("study.arms: there is no arm 'nonsense'", "mean_color")),
        (["study.axis_arms=[mine]"], ("study.axis_arms: there is no arm 'mine'",)),
        (["study.arms={mine: {start: raw_pixels, objective: {kind: supervised}}}"], ("does not pre-train",)),
        (["study.arms={mine: {objective: {kind: supervised}, optimizer: {lrr: 1}}}"], ("optimizer of an arm: lrr",)),
        (
            ["study.arms={mine: {objective: {kind: supervised}, optimizer: {name: adamm}}}"],
            ("study.arms", "mine: ", "'adamm' is not one of timm's"),
        ),
        (["study.sizes={../up: {arms: [random]}}"], ("study.sizes",)),
        (["study.only=[random/seed-0]", "downstream.label_column=klass"], ("downstream.label_column", "'klass'")),
        (['study.arms={random: null, mine: {start: ""}}'], ("study.arms.mine.start", "not empty")),
        (
            ["study.primary=[{higher: mean_color, lower: full_patch, by: knn}]"],
            ("study.primary: claim 1 is about the arm 'full_patch'", "it runs random, scratch, mean_color, supervised"),
        ),
        (["study.primary=[{higher: mean_color, lower: random, by: magic}]"], ("study.primary[0].by", "'magic'")),
        (
            ["study.primary=[{higher: mean_color, lower: random, by: knn}]", "evaluation.knn=null"],
            ("study.primary", "mean_color > random by knn: the study measures nothing by knn"),
        ),
        (
            ["study.primary=[{higher: mean_color, lower: random, by: few_shot, setting: 3}]"],
            ("study.primary", "mean_color > random by few_shot 3: the study measures 5, 1 by few_shot"),
        ),
        (
            ["study.primary=[{higher: mean_color, lower: scratch, by: finetune, setting: 0.1}]"],
            ("study.primary", "mean_color > scratch by finetune 0.1: the study measures 0.5 by finetune"),
        ),
        (
            [f"study.primary=[{', '.join(7 * ['{higher: mean_color, lower: random, by: knn}'])}]"],
            ("study.primary", "at most 6"),
        ),
        (["downstream.classes=[0,7]"], ("downstream.classes", "has 7, but ", "has 3 classes: 0 ")),
        (["upstream.classes=[1,3]"], ("upstream.classes", "has 3, but ", "has 3 classes: 0 ")),
        (
            ["study.pilot={lr: [1e-3,1e-2], seed: 1}"],
            ("study", "pilot.seed 1 is one of study.seeds; the pilot needs one of its own"),
        ),
        (["study.pilot={reserved: 0.2}"], ("study.pilot", "nothing to choose from: give lr, finetuning_lr or pools")),
        (
            ["study.pilot={finetuning_lr: [1e-3,1e-2]}", "finetuning.search.lr=[1e-3,1e-2]"],
            ("study.pilot", "the pilot does not go with finetuning.search"),
        ),
        (["study.pilot={lr: [1e-3]}", "study.both_ways=true"], ("study.pilot", "leave study.both_ways out")),
        (
            [
                "study.arms={mine: {objective: {kind: masked_patch}, optimizer: {lr: 3.0e-3}}}",
                "study.axis_arms=[]",
                "study.pilot={lr: [1e-3,1e-2]}",
            ],
            ("study.pilot", "mine has an optimizer.lr of its own"),
        ),
        (["study.choices={mine: {lr: 1e-3}}"], ("study.choices: there is no arm 'mine'",)),
        (["study.report_only=true"], ("no unit of this study is finished, neither in",)),
    ],
)
def test_mistakes_in_a_study_are_reported_as_those_of_its_own_settings_before_anything_runs(
    here: Callable[..., str], tmp_path: Path, changes: list[str], words: tuple[str, ...]
):
    message = here(*changes)
    for word in words:
        assert word in message
    assert not list((tmp_path / "gap").rglob("recipe.yaml"))
    assert not list((tmp_path / "gap").rglob("log.txt"))


@pytest.mark.parametrize("change", ["encoder.patch_size=5", "evaluation.few_shot.shots=[40]"])
def test_a_study_that_is_refused_writes_nothing(here: Callable[..., str], tmp_path: Path, change: str):
    here(change, f"study.keep={tmp_path / 'kept'}")
    assert not (tmp_path / "gap").exists()
    assert not (tmp_path / "kept").exists()


def test_the_report_alone_is_an_option(here: Callable[..., str]):
    assert "no unit of this study is finished" in here("--report-only")


def test_a_study_that_is_refused_leaves_the_recipe_of_its_folder_as_it_was(here: Callable[..., str], tmp_path: Path):
    (tmp_path / "gap").mkdir()
    (tmp_path / "gap" / "recipe.yaml").write_text("before")
    here("evaluation.few_shot.shots=[40]")
    here("encoder.patch_size=5")
    assert (tmp_path / "gap" / "recipe.yaml").read_text() == "before"


def test_packages_that_are_not_installed_are_reported_before_anything_runs(
    here: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert 'a study needs SciPy: pip install "masked-patch-prediction[study]"' in here(code=1)
    assert not (tmp_path / "gap").exists()


@pytest.mark.parametrize(
    ("up", "down", "shared"),
    [
        ("split: test", "", "41 of the 41 images to pre-train on (test) are among the 45 of test downstream"),
        ("split: 'train[:60%]'", "split: 'train[40%:]'", "18 of the 54 images to pre-train on"),
        ("split: 'test+train[:9]'", "split: 'train[:50%]'", "9 of the 49 images"),
    ],
)
def test_pre_training_on_images_of_the_evaluation_is_refused(
    here: Callable[..., str], tinted_images: Path, tmp_path: Path, up: str, down: str, shared: str
):
    sections = (f"{part}={{source: {tinted_images}, image_size: {SIZE}, workers: 0, {rest}}}"
                for part, rest in (("upstream", up), ("downstream", down)))  # fmt: skip
    assert shared in here(*sections)
    assert not list((tmp_path / "gap").rglob("log.txt"))
