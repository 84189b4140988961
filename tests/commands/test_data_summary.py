"""What a command says about its images, and which of it a resumed run keeps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.forkserver import ForkServer, good, refused
from tests.support.runs import RECIPES, arguments, checkpoints, encoded, older_by, picture, pretrain, weights

SHORT = ("training.duration.steps=4", "checkpoint.every.steps=2")


@pytest.fixture(scope="module")
def transparent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which a half is transparent, with noise behind it; one is damaged."""
    folder = tmp_path_factory.mktemp("transparent")
    for number in range(20):
        image = picture(20, 20, seed=number)
        image.putalpha(Image.fromarray(np.repeat(np.uint8([0, 255]), 200).reshape(20, 20)))
        (folder / f"{number:02d}.png").write_bytes(encoded(image))
    (folder / "notes.txt").write_text("notes")
    (folder / "99.png").write_bytes(b"no image")
    return folder


def test_a_run_says_what_it_found_and_at_its_end_what_it_replaced(transparent: Path, tmp_path: Path):
    given = (*SHORT, "training.duration.steps=9", "validation.every.steps=0")
    done = good(pretrain("mean_color.yaml", arguments(tmp_path / "run", transparent, *given)))
    lines = done.text.splitlines()
    assert lines[0] == "found 21 images in 1 folder (png), ignored 1 other file, held out 2 (a tenth)"
    assert "18 of 19 images that were looked at can be transparent" in done.text
    assert "warning: there are only 19 images to train on" in done.text
    assert "damaged: 1 training image could not be decoded: replaced by neighbours" in done.text


def test_a_run_that_is_older_than_the_setting_goes_on_without_a_background(transparent: Path, tmp_path: Path):
    old, white = tmp_path / "old", tmp_path / "white"
    good(pretrain("mean_color.yaml", arguments(white, transparent, *SHORT)))
    good(pretrain("mean_color.yaml", arguments(old, transparent, *SHORT, "data.background=null")))
    finished = weights(old)
    assert finished != weights(white)
    shutil.rmtree(checkpoints(old)[-1])
    older_by(old, "background")
    another = pretrain("mean_color.yaml", arguments(old, transparent, *SHORT, "data.background=black"))
    refused(another, "data.background=null then, black now")
    again = good(pretrain("mean_color.yaml", arguments(old, transparent, *SHORT)))
    assert "from step 2" in again.text
    assert "this run started with data.background=null and keeps it" in again.text
    assert weights(old) == finished
    done = good(pretrain("mean_color.yaml", arguments(old, transparent, *SHORT)))
    assert f"{old} is finished" in done.text
    refused(pretrain("mean_color.yaml", arguments(white, transparent, *SHORT, "data.bits=12")), "data.bits=16 then")


def test_folders_that_are_taken_as_classes_are_named_wherever_labels_are_used(images: Path, tmp_path: Path):
    small = ("training.duration.steps=1", "optimizer.warmup.steps=0")
    said = good(pretrain("supervised.yaml", arguments(tmp_path / "labelled", images, *small))).text
    assert "3 folders taken as classes: blue, green, red" in said
    said = good(pretrain("mean_color.yaml", arguments(tmp_path / "unlabelled", images, *small))).text
    assert "taken as classes" not in said


def class_folders(folder: Path, names: Sequence[str], each: int) -> Path:
    for number in range(each * len(names)):
        path = folder / names[number % len(names)] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(20, 20, seed=number)))
    return folder


TUNED = ("data.image_size=16", "data.workers=0", "encoder.name=test_vit", "encoder.patch_size=4", "search.lr=[]",
         "training.duration.steps=1", "training.batch_size=4", "optimizer.warmup.steps=0", "labels.dev=0.2",
         "early_stopping.patience=0", "validation.every.steps=1")  # fmt: skip


def test_a_handful_of_images_is_refused_and_the_setting_that_allows_it_is_named(tmp_path: Path):
    few = class_folders(tmp_path / "few", ("one",), 2)
    failed = pretrain("mean_color.yaml", arguments(tmp_path / "run", few, "training.duration.steps=1"))
    refused(failed, "holds 2 images, of which 1 would be held")
    refused(failed, "data.validation_split=train")
    assert not (tmp_path / "run").exists()
    settings = ("training.duration.steps=1", "optimizer.warmup.steps=0", "data.validation_split=train")
    said = good(pretrain("mean_color.yaml", arguments(tmp_path / "run", few, *settings))).text
    assert "finished: 1 step, " in said


def test_a_fine_tuning_names_its_test_and_its_dev_split_and_what_they_lack(tmp_path: Path, commands: ForkServer):
    months = class_folders(tmp_path / "months", ("2024-01", "2024-02", "2024-03"), 5)
    run = tmp_path / "tuned"
    done = good(commands.run("mpp.finetune", RECIPES / "finetune.yaml", f"data.source={months}", f"output_dir={run}",
                             *TUNED))  # fmt: skip
    said = " ".join(done.text.split())
    assert "warning: the folders are called like dates: are these classes?" in said
    assert "test split: 1 image (one in 10 of train), read once, at the end" in said
    assert "dev split: 3 of the 14 labelled training images" in said
    assert "warning: the test split has 1 image: an accuracy on so few says hardly anything." in said
    assert "warning: the test split has no image of 2 classes: 2024-0" in said
    assert "dev split: loss" in said
    assert "held out: " not in said
    assert f"next: mpp report {run}; mpp predict encoder={run} data.source=FOLDER" in said
    predicted = good(commands.run("mpp.predict", "predict", f"encoder={run}", f"data.source={months}",
                                  "data.workers=0", f"output_dir={tmp_path / 'out'}")).text  # fmt: skip
    counts = re.search(r"^predicted: (.+)$", predicted, re.MULTILINE)
    assert counts is not None
    assert sum(int(each.rpartition(" ")[2]) for each in counts[1].split(", ")) == 15


def test_without_labels_a_fine_tuning_says_how_to_give_them(tmp_path: Path, commands: ForkServer):
    flat = class_folders(tmp_path / "flat", (".",), 12)
    failed = commands.run("mpp.finetune", RECIPES / "finetune.yaml", f"data.source={flat}", *TUNED,
                          f"output_dir={tmp_path / 'run'}")  # fmt: skip
    refused(failed, "put the images into one folder a class, or give a table")
