"""What a command says about its images, and which of it a resumed run keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.forkserver import good, refused
from tests.support.runs import arguments, checkpoints, encoded, older_by, picture, pretrain, weights

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
    refused(another, "data.background: None then, 'black' now")
    again = good(pretrain("mean_color.yaml", arguments(old, transparent, *SHORT)))
    assert "from step 2" in again.text
    assert "this run started with data.background=null and keeps it" in again.text
    assert weights(old) == finished
    done = good(pretrain("mean_color.yaml", arguments(old, transparent, *SHORT)))
    assert f"{old} is finished" in done.text
    refused(pretrain("mean_color.yaml", arguments(white, transparent, *SHORT, "data.bits=12")), "data.bits: 16 then")


def test_folders_that_are_taken_as_classes_are_named_wherever_labels_are_used(images: Path, tmp_path: Path):
    small = ("training.duration.steps=1", "optimizer.warmup.steps=0")
    said = good(pretrain("supervised.yaml", arguments(tmp_path / "labelled", images, *small))).text
    assert "3 folders taken as classes: blue, green, red" in said
    said = good(pretrain("mean_color.yaml", arguments(tmp_path / "unlabelled", images, *small))).text
    assert "taken as classes" not in said
