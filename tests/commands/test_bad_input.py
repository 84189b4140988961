"""A user's mistake gets one clear message, a non-zero exit and no traceback; nothing is lost."""

import re

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import load_file

import mpp
from tests.support.forkserver import good, refused
from tests.support.runs import (
    RECIPES,
    arguments,
    checkpoints,
    encoded,
    journal,
    losses,
    parquet_folder,
    pretrain,
    pretrain_all,
    progress,
    scene,
    scenes,
    weights,
)

FEW = "training.duration.steps=2"


# recipes, in this process


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def refusal(path, *overrides):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  callers look at the message
        mpp.load_recipe(path, overrides=list(overrides))
    return str(caught.value)


def shipped(tmp_path, *extra):
    """A shipped recipe with lines at its end, and the number of the first of these."""
    text = (RECIPES / "mean_color.yaml").read_text().rstrip("\n") + "\n"
    return write(tmp_path, text + "\n".join(extra) + "\n"), text.count("\n") + 1


def test_every_mistake_is_listed_at_once_with_file_line_path_and_suggestion(tmp_path):
    path = write(
        tmp_path,
        "command: pretrain\n"
        "seed: zero\n"
        "data:\n"
        "  source: embedded\n"
        "  image_sise: 32\n"
        "training:\n"
        "  batch_size: -4\n"
        "objective:\n"
        "  kind: masked_patch\n"
        "  target: {kind: mean_colour}\n",
    )
    message = refusal(path)
    for line, dotted, words in (
        (2, "seed", ["zero"]),
        (5, "data.image_sise", ["image_size"]),
        (7, "training.batch_size", ["-4"]),
        (10, "objective.target", ["mean_colour", "mean_color", "downsized", "full_patch"]),
    ):
        assert f"mine.yaml:{line}" in message
        assert dotted in message
        assert all(word in message for word in words)


def test_an_unknown_top_level_key_is_refused_with_its_line(tmp_path):
    path, line = shipped(tmp_path, "trianing: {}")
    message = refusal(path)
    assert f"mine.yaml:{line}" in message
    assert "training" in message


def test_a_key_written_twice_is_refused(tmp_path):
    path, line = shipped(tmp_path, "seed: 1", "seed: 2")
    message = refusal(path)
    assert f":{line + 1}" in message or f":{line}" in message
    assert "seed" in message


def test_a_nested_key_written_twice_is_refused(tmp_path):
    path = write(tmp_path, "command: pretrain\ntraining:\n  batch_size: 8\n  batch_size: 16\n")
    assert "batch_size" in refusal(path)
    assert ":4" in refusal(path)


def test_an_unknown_override_is_refused_with_a_suggestion():
    assert "training.batch_size" in refusal(RECIPES / "mean_color.yaml", "training.batch_sise=8")


@pytest.mark.parametrize(
    "override",
    [
        "checkpoint.keep=1",
        "training.batch_size=0",
        "training.batch_size=many",
        "objective.corruption.fraction=1.5",
        "objective.target.bits=5",
        "objective.kind=nonsense",
        "objective.head=resnet",
        "encoder.pool=max",
        "optimizer.lr=-1",
        "training.duration.steps=-1",
        "training.duration.hours=1",
        "seed",
        "optimizer.layer_decay=0.7",
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(override):
    assert override.split("=")[0].split(".")[-1] in refusal(RECIPES / "mean_color.yaml", override)


def test_two_units_of_one_duration_are_refused(tmp_path):
    path = write(tmp_path, "command: pretrain\ntraining:\n  duration: {steps: 1, epochs: 1}\n")
    message = refusal(path)
    assert "training.duration" in message
    assert "mine.yaml:3" in message


def test_shares_that_do_not_add_up_are_refused():
    assert "objective.corruption" in refusal(RECIPES / "mean_color.yaml", "objective.corruption.mask=0.9")


def test_a_setting_of_another_target_is_refused():
    assert "cells" in refusal(RECIPES / "mean_color.yaml", "objective.target.cells=4")


def test_broken_yaml_is_named(tmp_path):
    assert "mine.yaml" in refusal(write(tmp_path, "command: pretrain\nseed: [1, 2\ndata: {source: embedded}\n"))


def test_scientific_notation_is_a_number_in_files_and_on_the_command_line(tmp_path):
    assert mpp.load_recipe(RECIPES / "mean_color.yaml", overrides=["optimizer.lr=3e-4"]).optimizer.lr == 3e-4
    recipe = yaml.safe_load((RECIPES / "mean_color.yaml").read_text())
    recipe.setdefault("optimizer", {})["lr"] = "PLACE"
    path = write(tmp_path, yaml.safe_dump(recipe).replace("PLACE", "5e-5"))
    assert mpp.load_recipe(path).optimizer.lr == 5e-5


# whole commands

LACKING = {  # what does not exist or fit: the setting, and words the message must hold
    "encoder.name=vit_tinny_patch16_224": ("vit_tinny_patch16_224", "vit_tiny_patch16_224"),
    "encoder.source=/no/such/run": ("/no/such/run",),
    "data.image_column=picture": ("picture", "image"),
    "data.label_column=klass": ("klass", "label"),
    "data.split=trian": ("trian", "train"),
    "data.source=/no/such/place/images.parquet": ("/no/such/place/images.parquet",),
    "training.micro_batch_size=3": ("8", "3"),
    "optimizer.name=adamm": ("adamm",),
}


EXPLODING = (  # decay by more than all of a weight: they grow by a factor in each step, until the loss overflows
    "optimizer.lr=1e-2", "optimizer.weight_decay=500", "optimizer.schedule=constant", "optimizer.warmup.steps=0",
    "checkpoint.every.steps=1",
)  # fmt: skip


OVERFLOWING = (  # one finite step by more than a float32 can hold
    "optimizer.name=sgd", "optimizer.lr=1e300", "optimizer.schedule=constant", "optimizer.warmup.steps=0",
    "checkpoint.every.steps=1",
)  # fmt: skip


def halved(image):
    name, content = image
    return name, content[: len(content) // 2]


def broken(images, every=4):
    return [halved(image) if i % every else image for i, image in enumerate(images)]


JUDGED = """\
command: pretrain
output_dir: elsewhere
data:
  source: embedded
objective: {kind: masked_patch}
encoder:
  name: vit_tinny_patch16_224
optimizer:
  name: adamm
  lr: 1e-3
"""
"""A recipe whose mistakes only timm can tell."""


@pytest.fixture(scope="module")
def results(tmp_path_factory, images):
    """Every command of this file, in one process: folder of the runs and results by name."""
    folder = tmp_path_factory.mktemp("bad-input")
    jobs = {}

    def job(name, source, *changes, recipe="mean_color.yaml"):
        jobs[name] = (recipe, arguments(folder / name, source, *changes))

    for number, change in enumerate(LACKING):
        jobs[change] = ("mean_color.yaml", arguments(folder / f"lacking-{number}", images, FEW, change))
    jobs["judged by timm"] = (write(folder, JUDGED), [f"output_dir={folder / 'judged'}", "training.precision=float32"])
    sizes = ("data.image_size=15", "optimizer.name=sgd", "optimizer.betas=[0.9, 0.9]")
    job("judged, overridden", images, *sizes)
    job("adam with decay", images, FEW, "optimizer.name=adam", "optimizer.weight_decay=0.1")
    job("missing recipe", images, recipe="no_such_recipe.yaml")
    job("no labels", parquet_folder(folder / "unlabelled", scenes(10)), FEW, recipe="supervised.yaml")

    empty = parquet_folder(folder / "empty", scenes(1), labelled=True)
    for path in empty.glob("*.parquet"):
        parquet.write_table(parquet.read_table(path).slice(0, 0), path)
    job("no rows", empty, FEW)

    dot = ("dot.png", encoded(Image.fromarray(np.full((1, 1, 3), 90, np.uint8))))
    job("one pixel", parquet_folder(folder / "dot", [*scenes(9), dot]), "training.duration.epochs=1")

    many = [(f"scene-{i:03d}.png", encoded(Image.fromarray(scene(i, 12, 12)))) for i in range(400)]
    many[200] = halved(many[200])
    changes = ("training.batch_size=40", "training.micro_batch_size=40", "training.duration.epochs=1")
    job("one truncated", parquet_folder(folder / "one", many), *changes)

    for count, places in ((1, [41]), (2, [41, 7])):
        sixty = scenes(60)
        for place in places:
            sixty[place] = (sixty[place][0], b"no image at all")
        source = parquet_folder(folder / f"{count}-in-sixty", sixty)
        job(f"{count} in sixty", source, "training.duration.epochs=2")
        if count == 1:
            job("none allowed in sixty", source, "training.duration.epochs=2", "data.max_bad_share=0")
    job("most truncated", parquet_folder(folder / "most", broken(scenes(40))), "training.duration.epochs=2")

    job("not finite", images, *EXPLODING, "training.duration.steps=400")
    job("not finite at the end", images, "optimizer.lr=1e30", "training.duration.steps=4")
    for name, changes in (("in a step", ()), ("in the last step", ("training.duration.steps=1",))):
        job(f"infinite weights {name}", images, "training.duration.steps=20", *OVERFLOWING, *changes)
    never = ("optimizer.lr=1e30", "optimizer.warmup.steps=0", "checkpoint.every.steps=0")
    job("not finite before a save", images, *never, "training.duration.steps=40", "training.max_skipped=3")
    return folder, pretrain_all(jobs)


@pytest.mark.parametrize("change", LACKING)
def test_what_does_not_exist_or_fit_is_named(results, change):
    refused(results[1][change], *LACKING[change])


def test_all_that_timm_knows_better_is_told_at_once_with_file_and_line_and_nothing_is_made(results):
    folder, by_name = results
    where = folder / "mine.yaml"
    for name, *words in (
        (
            "judged by timm",
            f"{where}:7: encoder.name",
            "did you mean vit_tiny_patch16_224",
            f"{where}:9: optimizer.name 'adamm' is not one of timm's optimisers; did you mean adam",
            f"2 problems with {where}",
        ),
        (
            "judged, overridden",
            "command line: data.image_size 15 is not a multiple of the patch size 4",
            "command line: optimizer.betas",
        ),
    ):
        message = " ".join(by_name[name].text.split())  # which is wrapped for a terminal
        assert by_name[name].code == 2
        assert "Traceback" not in message
        assert [word for word in words if word not in message] == [], message
    assert not list((folder / "judged").glob("[!.]*"))


def test_adam_with_decay_is_refused_and_points_to_adamw(results):
    refused(results[1]["adam with decay"], "adamw")


def test_a_missing_recipe_is_named(results):
    refused(results[1]["missing recipe"], "no_such_recipe.yaml")


def test_a_data_set_without_rows_is_refused(results):
    refused(results[1]["no rows"])
    assert re.search(r"empty|no images|no rows|\b0 (images|rows)", results[1]["no rows"].text, re.IGNORECASE)


def test_supervised_training_without_labels_is_refused(results):
    refused(results[1]["no labels"], "label")


def test_an_image_of_one_pixel_trains(results):
    folder, by_name = results
    good(by_name["one pixel"])
    assert len(losses(folder / "one pixel")) == 2


def test_one_truncated_file_in_four_hundred_is_replaced_counted_and_named(results):
    folder, by_name = results
    good(by_name["one truncated"])
    assert "scene-200.png" in (folder / "one truncated" / "metrics.jsonl").read_text()
    assert max(losses(folder / "one truncated")) == 10


def test_one_undecodable_image_does_not_stop_a_small_data_set_and_is_counted_and_named_once(results):
    folder, by_name = results
    result, rows = by_name["1 in sixty"], journal(folder / "1 in sixty")
    good(result)
    assert rows[-1]["step"] == 15, "two epochs of 60 in batches of 8"
    named = [row for row in rows if "damaged_images" in row]
    assert [row["damaged"] for row in named] == [1]
    assert [image["where"] for image in named[0]["damaged_images"]] == ["row 41 (scene-041.png)"]
    assert result.text.count("row 41 (scene-041.png) cannot be decoded") == 1


@pytest.mark.parametrize("name", ["none allowed in sixty", "2 in sixty"])
def test_more_undecodable_images_than_allowed_stop_a_small_data_set(results, name):
    result = results[1][name]
    refused(result, "scene-041.png", "data.max_bad_share", code=1)


def test_a_data_set_of_broken_files_stops_the_run_with_examples(results):
    result = results[1]["most truncated"]
    refused(result, code=1)
    assert any(f"scene-{i:03d}.png" in result.text for i in range(40) if i % 4)


def test_a_loss_that_stays_non_finite_stops_the_run_at_the_weights_of_the_last_finite_step(results, images):
    folder, by_name = results
    refused(by_name["not finite"], "finite", code=1)
    run, cut = folder / "not finite", folder / "cut"
    last = max(row["step"] for row in journal(run) if "skipped" not in row)
    assert 5 < last < journal(run)[-1]["step"] < 400
    assert losses(run)[last] > 1000 * losses(run)[1], "it had long begun to explode"
    assert progress(checkpoints(run)[-1]) == last
    pretrain("mean_color.yaml", arguments(cut, images, *EXPLODING, f"training.duration.steps={last}"))
    expected, kept = checkpoints(cut)[-1], checkpoints(run)[-1]
    assert expected.name == kept.name
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (kept / name).read_bytes() == (expected / name).read_bytes()
        assert all(np.isfinite(value).all() for value in load_file(kept / name).values())
    assert weights(run) == weights(cut)


def test_a_run_that_ends_before_it_gives_up_on_a_loss_that_is_not_finite_ends_in_words(results):
    assert "step 4: loss nan" in results[1]["not finite at the end"].text
    assert "Traceback" not in results[1]["not finite at the end"].text


@pytest.mark.parametrize("name", ["infinite weights in a step", "infinite weights in the last step"])
def test_weights_that_a_finite_step_made_infinite_are_never_saved(results, name):
    folder, by_name = results
    first = journal(folder / name)[0]
    assert first["step"] == 1
    assert all(np.isfinite(first[value]) for value in ("loss", "gradient_norm"))
    refused(by_name[name], "the weights are not finite after step 1", "Nothing had been saved yet", code=1)
    assert not checkpoints(folder / name)
    assert not list((folder / name).rglob("*.safetensors"))


def test_a_loss_that_is_never_finite_again_says_that_nothing_had_been_saved(results):
    folder, by_name = results
    name = "not finite before a save"
    assert np.isfinite(losses(folder / name)[1])
    refused(by_name[name], "3 steps in a row", "not finite", "Nothing had been saved yet", code=1)
    assert not list((folder / name).rglob("*.safetensors"))


def test_a_run_that_gives_up_says_where_its_last_good_checkpoint_is(results):
    folder, by_name = results
    assert f"The latest valid checkpoint is in {folder / 'not finite' / 'checkpoints'}" in by_name["not finite"].text
    assert "Nothing had been saved yet" not in by_name["not finite"].text
