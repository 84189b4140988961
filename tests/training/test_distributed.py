"""The same run on several processes, whatever goes wrong in one of them."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from mpp.data.sampler import Order
from mpp.randomness import key, permutation
from tests.support.forkserver import ForkServer, as_two, good, refused
from tests.support.late_rank import SECONDS
from tests.support.runs import (
    RECIPES,
    arguments,
    checkpoints,
    encoded,
    free_port,
    journal,
    losses,
    parquet_folder,
    pretrain,
    pretrain_as_two,
    progress,
    scene,
    scenes,
    write_parquet,
)

MICRO = "training.micro_batch_size=4"  # half of a batch, for each process


def test_every_topology_gives_the_losses_of_one_process(tmp_path, images):
    """Without drop path, which is drawn by process; 22 images in batches of 16 run across epoch borders."""

    def settings(run, micro, workers):
        changes = ["training.batch_size=16", f"training.micro_batch_size={micro}", "training.duration.steps=6"]
        return arguments(run, images, *changes, f"data.workers={workers}")

    def started(run, micro, workers):
        good(pretrain("mean_color.yaml", settings(run, micro, workers)))
        return journal(run)

    one = started(tmp_path / "1x0", 16, 0)
    others = {"1x2": started(tmp_path / "1x2", 4, 2)}
    for name, micro, workers in (("2x0", 8, 0), ("2x2", 4, 2)):
        for result in pretrain_as_two("mean_color.yaml", settings(tmp_path / name, micro, workers)):
            good(result)
        others[name] = journal(tmp_path / name)
    for topology, rows in others.items():
        assert [row["step"] for row in rows] == [row["step"] for row in one] == [1, 2, 3, 4, 5, 6]
        for row, expected in zip(rows, one, strict=True):
            where = f"{topology}, step {row['step']}"
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6), where
            # Other crops, positions or kinds would show in these.
            for name in ("loss_mask", "loss_swap", "loss_keep"):
                assert row[name] == pytest.approx(expected[name], rel=1e-5), where


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine with a GPU that launch is right")
def test_two_processes_that_think_they_are_alone_are_refused(tmp_path, images):
    """As a launcher for GPUs starts them, where there is none."""
    settings = arguments(tmp_path / "run", images, "training.duration.steps=2")
    results = pretrain_as_two("mean_color.yaml", settings, ACCELERATE_USE_CPU="false")
    assert [result.code for result in results] == [2, 2]
    refused(results[0], "the launcher started 2 processes, but each thinks that it is one of 1")
    assert not checkpoints(tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine with a GPU that launch is right")
def test_a_launcher_that_starts_one_process_where_two_were_asked_for_is_refused(commands: ForkServer, tmp_path, images):
    launcher = ("--cpu", "--num_processes", "2", "-m", "mpp.pretrain", RECIPES / "mean_color.yaml")
    settings = arguments(tmp_path / "run", images, "training.duration.steps=2")
    command = commands.run("tests.support.launched", *launcher, *settings)
    assert command.code != 0, command.text
    assert "the launcher started this one alone" in command.text
    assert not list((tmp_path / "run").rglob("*.safetensors"))


# a step that is not finite

BRIGHT = (10, 12, 17)


@pytest.fixture(scope="module")
def not_finite(tmp_path_factory):
    """(folder, settings, results) of a run of two processes: a batch that has a bright image is not finite.

    Black pixels divided by 1e-39 are 0, all others infinite.
    """
    folder = tmp_path_factory.mktemp("not-finite")
    pictures = [encoded(Image.fromarray(np.full((16, 16, 3), 255 * (i in BRIGHT), np.uint8))) for i in range(22)]
    write_parquet(folder / "data" / "train.parquet", [(f"{i}.png", picture) for i, picture in enumerate(pictures)])
    write_parquet(folder / "data" / "test.parquet", [("black.png", pictures[0])] * 8)
    changes = ["encoder.mean=[0, 0, 0]", "encoder.std=[1e-39, 1e-39, 1e-39]", "optimizer.lr=1e-2"]
    changes += [MICRO, "training.duration.steps=40", "training.max_skipped=3"]
    changes += ["checkpoint.every.steps=1", "checkpoint.keep=50"]

    def settings(name):
        return arguments(folder / name, folder / "data", *changes)

    assert pretrain("mean_color.yaml", settings("one")).code == 1
    return folder, settings("two"), pretrain_as_two("mean_color.yaml", settings("two"))


def test_a_step_that_is_not_finite_in_one_process_is_skipped_and_counted_by_all(not_finite):
    folder, _, results = not_finite
    order = Order(22, seed=0)
    bright = [np.isin(order.rows(np.arange(8 * step, 8 * step + 8)).reshape(2, 4), BRIGHT) for step in range(10)]
    in_first, in_second = ([bool(step[rank].any()) for step in bright] for rank in range(2))
    assert [a or b for a, b in zip(in_first, in_second, strict=True)] == [
        s in (3, 4, 6, 8, 9, 10) for s in range(1, 11)
    ]
    assert in_first[5] > in_second[5], "one process's batch is finite"
    assert in_first[7] < in_second[7], "the other's is"

    assert [result.code for result in results] == [1, 1]
    assert "step 6: loss nan" in results[0].text
    assert "Traceback" not in results[0].text + results[1].text
    one, two = journal(folder / "one"), journal(folder / "two")
    skipped = {3: 1, 4: 2, 6: 3, 8: 4, 9: 5, 10: 6}
    for rows in (one, two):
        assert [row["step"] for row in rows] == list(range(1, 11))
        assert {row["step"]: row["skipped"] for row in rows if "skipped" in row} == skipped
    finite = [
        {step: loss for step, loss in losses(folder / name).items() if loss is not None} for name in ("one", "two")
    ]
    assert finite[1] == pytest.approx(finite[0], rel=1e-6)
    assert finite[1].keys() == set(range(1, 11)) - skipped.keys()
    curve = list(finite[1].values())
    assert curve == sorted(curve, reverse=True), "what was learnt before a skipped step is not lost"


def test_the_last_good_checkpoint_stands_when_every_process_gives_up(not_finite):
    folder, _, _ = not_finite
    kept = checkpoints(folder / "two")
    assert [progress(checkpoint) for checkpoint in kept] == [1, 2, 5, 7], "no step that was skipped"
    newest = load_file(kept[-1] / "weights.safetensors")
    exported = load_file(folder / "two" / "encoder" / "model.safetensors")
    assert all(np.array_equal(value, newest[f"encoder.vit.{name}"]) for name, value in exported.items())


def test_a_run_whose_last_step_is_skipped_is_saved_all_the_same(not_finite, tmp_path):
    run, changed = tmp_path / "run", ("output_dir", "training.duration")
    settings = [setting for setting in not_finite[1] if not setting.startswith(changed)]
    settings += [f"output_dir={run}", "training.duration.steps=6"]
    good(pretrain("mean_color.yaml", settings))
    assert progress(checkpoints(run)[-1]) == 6
    assert "is finished" in pretrain("mean_color.yaml", settings).text


# damaged images


def halved(image):
    name, content = image
    return name, content[: len(content) // 2]


def test_one_damaged_image_is_replaced_and_counted_once_whichever_process_meets_it(tmp_path):
    places = np.flatnonzero(Order(104, seed=0).rows(np.arange(208)) == 3)
    assert set(places % 26 // 13) == {0, 1}, "a different process in each epoch"
    images = scenes(104)
    images[3] = halved(images[3])
    data = parquet_folder(tmp_path / "data", images)
    changes = ["training.batch_size=26", "training.micro_batch_size=13", "training.duration.epochs=2"]
    good(pretrain("mean_color.yaml", arguments(tmp_path / "one", data, *changes)))
    for result in pretrain_as_two("mean_color.yaml", arguments(tmp_path / "two", data, *changes)):
        good(result)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    [found] = [row for row in journal(tmp_path / "two") if "damaged" in row or "damaged_images" in row]
    assert found["step"] == places[0] // 26 + 1
    assert found["damaged"] == 1
    [damaged] = found["damaged_images"]
    assert damaged["row"] == 3
    assert "scene-003.png" in damaged["where"]


def test_a_damaged_held_out_image_is_named_whichever_process_meets_it(tmp_path):
    """Processes take the chosen rows in turn; of the two that are damaged each meets one."""
    chosen = permutation(key(0, "evaluation"), 0, 8)
    data = parquet_folder(tmp_path / "data", scenes(24))
    held_out = [(f"held-{i}.png", encoded(Image.fromarray(scene(1000 + i)))) for i in range(8)]
    for row in chosen[:2]:
        held_out[row] = halved(held_out[row])
    write_parquet(data / "test.parquet", held_out)
    settings = arguments(tmp_path / "run", data, MICRO, "training.duration.steps=2", "reconstructions.images=0")
    for result in pretrain_as_two("mean_color.yaml", settings):
        good(result)
    [found] = [row["validation/damaged_images"] for row in journal(tmp_path / "run") if "validation/loss" in row]
    assert [image["where"] for image in found] == [f"row {row} (held-{row}.png)" for row in sorted(chosen[:2])]


@pytest.fixture(scope="module")
def too_many(tmp_path_factory):
    """Results of the two processes of a run on data of which every eighth image is damaged."""
    folder = tmp_path_factory.mktemp("too-many")
    images = [halved(image) if i % 8 == 0 else image for i, image in enumerate(scenes(104))]
    settings = arguments(folder / "run", parquet_folder(folder / "data", images), MICRO)
    return pretrain_as_two("mean_color.yaml", settings)


def test_too_many_damaged_images_end_both_processes_with_examples(too_many):
    assert [result.code for result in too_many] == [1, 1]
    assert "Traceback" not in too_many[0].text + too_many[1].text
    message = too_many[0].text.split("error: ")[1]
    assert "data.max_bad_share" in message
    named = re.findall(r"scene-(\d+)\.png", message)
    assert named
    assert all(int(number) % 8 == 0 for number in named)


def test_a_process_that_finds_no_good_image_takes_the_other_along(tmp_path):
    """Only one of them meets the row that has no neighbour to stand in; the other waits for its gradients."""
    images = [halved(image) if 20 <= i <= 36 else image for i, image in enumerate(scenes(100))]
    changes = [MICRO, "data.max_bad_share=0.16", "validation.baseline_images=1", "training.duration.epochs=2"]
    changes += ["data.workers=2"]
    data = parquet_folder(tmp_path / "data", images)
    results = pretrain_as_two("mean_color.yaml", arguments(tmp_path / "run", data, *changes))
    assert [result.code for result in results] == [1, 1]
    assert "Traceback" not in results[0].text + results[1].text
    told = [result.text for result in results if "17 images in a row cannot be decoded" in result.text]
    assert len(told) == 1
    assert "scene-020.png" in told[0]


def test_processes_that_give_up_together_say_why_once(not_finite, too_many):
    for results in (not_finite[2], too_many):
        assert [result.text.count("error: ") for result in results] == [1, 0]


def test_images_per_second_do_not_count_waits_for_a_late_process(commands: ForkServer, tmp_path, images):
    settings = arguments(tmp_path / "run", images, MICRO, "training.duration.steps=4", "validation.every.steps=1",
                         "journal.every.steps=1", "reconstructions.images=0")  # fmt: skip
    for command in as_two(commands, "tests.support.late_rank", free_port(), RECIPES / "mean_color.yaml", *settings):
        good(command)
    slowest = min(row["images_per_second"] for row in journal(tmp_path / "run"))
    assert slowest > 8 / SECONDS  # a step of 8 images that waited for the late process takes longer than that
