"""Folders of images, however they are laid out: every image is found, in the split and class that it is meant for."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from mpp.data.damaged import DecodedImages, TooManyDamagedError
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
from tests.support.runs import encoded, picture

VEHICLES = ["bus", "car", "plane", "train"]


def laid(folder: Path, *names: str) -> Path:
    """Images of these names in a folder, each of another colour."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(20, 20, seed=number)))
    return folder


def in_classes(where: str, classes: list[str], images: int) -> list[str]:
    return [f"{where}{name}/{number}.png" for name in classes for number in range(images)]


def opened(folder: Path, **settings):
    return open_splits(DataSettings(source=str(folder), image_size=16, **settings), seed=0)


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        pytest.param(in_classes("", VEHICLES, 10), 4, id="a class called train"),
        pytest.param(in_classes("", ["test-tubes", "flasks"], 10), 2, id="a class whose name begins with test"),
        pytest.param([f"IMG_{n}.png" for n in range(50)] + [f"train ride {n}.png" for n in range(3)], 5, id="flat"),
        pytest.param([f"{n}.png" for n in range(50)] + ["test.png"], 5, id="one called test"),
        pytest.param([f"{n}.png" for n in range(50)] + ["test/a.png"], 5, id="a folder called test"),
        pytest.param([f"{n}.png" for n in range(50)] + ["train/a.png"], 5, id="a folder called train"),
        pytest.param(in_classes("photos [2024]/", ["a", "b"], 10), 2, id="brackets"),
    ],
)
def test_no_image_is_left_out_for_the_name_of_a_file_or_a_class(tmp_path: Path, names: list[str], held_out: int):
    train, validation = opened(laid(tmp_path / "set", *names))
    assert (len(train), len(validation)) == (len(names) - held_out, held_out)


def test_a_class_called_train_is_a_class(tmp_path: Path):
    folder = laid(tmp_path / "set", *in_classes("", VEHICLES, 10))
    train, validation = open_splits(DataSettings(source=str(folder), image_size=16), seed=0, labelled=True)
    assert train.class_names == VEHICLES
    assert train.labels is not None
    assert validation.labels is not None
    counts = [(train.labels == label).sum() + (validation.labels == label).sum() for label in range(4)]
    assert counts == [10] * 4


@pytest.mark.parametrize("inside", ["", "data/", "a/b/"])
@pytest.mark.parametrize(("train", "other"), [("train", "test"), ("training", "val"), ("train", "evaluation")])
def test_folders_called_as_splits_are_splits(tmp_path: Path, inside: str, train: str, other: str):
    names = in_classes(f"{inside}{train}/", ["a", "b"], 6) + in_classes(f"{inside}{other}/", ["a", "b"], 2)
    folder = laid(tmp_path / "set", *names)
    (folder / "about.txt").write_text("about")
    rows = open_splits(DataSettings(source=str(folder), image_size=16), seed=0, labelled=True)
    assert [len(split) for split in rows] == [12, 4]
    assert rows.train.class_names == ["a", "b"]


@pytest.mark.parametrize("place", ["set", "../here/set", "./set/"])
@pytest.mark.parametrize(("train", "test"), [("train_", "test_"), ("train/", "test/")])
def test_a_folder_may_be_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, train: str, test: str
):
    """Files that are all called as splits are in these, as are those in folders that are."""
    names = [f"{train}{n}.png" for n in range(6)] + [f"{test}{n}.png" for n in range(6, 10)]
    laid(tmp_path / "here" / "set", *names)
    monkeypatch.chdir(tmp_path / "here")
    rows = open_splits(DataSettings(source=place, image_size=16), seed=0)
    assert [len(split) for split in rows] == [6, 4]


@pytest.mark.parametrize("suffix", ["txt", "json", "xml"])
def test_a_file_of_notes_beside_each_image_does_no_harm(tmp_path: Path, suffix: str):
    names = [f"{n:03d}.jpg" for n in range(20)]
    folder = laid(tmp_path / "set", *names)
    for name in names:
        (folder / name).with_suffix(f".{suffix}").write_text(json.dumps({"shapes": []}))
    assert sum(len(split) for split in opened(folder)) == 20


def test_as_many_damaged_images_in_a_row_are_passed_over_as_may_be_damaged_in_all(tmp_path: Path):
    folder = laid(tmp_path / "set", *[f"{n:03d}.png" for n in range(60)])
    for number in range(10, 30):  # as a copy that was interrupted leaves them
        (folder / f"{number:03d}.png").write_bytes(b"")
    rows = opened(folder, validation_split="train[:5]").train
    assert DecodedImages(rows, max_bad_share=0.5).load(10).row == 30
    with pytest.raises(TooManyDamagedError, match="16 images in a row"):
        DecodedImages(rows).load(10)


def test_a_row_of_neither_bytes_nor_path_is_a_damaged_one(tmp_path: Path):
    image = pa.array(
        [{"bytes": encoded(picture(seed=n)) if n != 7 else None, "path": None} for n in range(20)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    parquet.write_table(pa.table({"image": image}), tmp_path / "nulls.parquet")
    rows = opened(tmp_path / "nulls.parquet", validation_split="train[:2]").train
    loaded = DecodedImages(rows).load(7)
    assert (loaded.row, loaded.damaged) == (8, ((7, "the row holds no image"),))


def test_images_in_a_zip_archive_are_read(tmp_path: Path):
    names = [f"{n}.png" for n in range(20)]
    folder = laid(tmp_path / "plain", *names)
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "images.zip", "w") as archive:
        for name in names:
            archive.write(folder / name, name)
    train, validation = opened(tmp_path / "set")
    there = {split.encoded(row) for split in (train, validation) for row in range(len(split))}
    assert there == {(folder / name).read_bytes() for name in names}
    assert not DecodedImages(train).load(0).damaged
