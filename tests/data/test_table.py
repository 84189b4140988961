"""A table of images is a protocol: a table that is defined in this file alone is decoded, cropped and trained on."""

from __future__ import annotations

import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import mpp
from mpp.data.arrow_table import ArrowTable, Selection
from mpp.data.loader import SHARED_MEMORY, EvaluationCrops, TrainingCrops, batches
from mpp.data.sampler import Order, plan_batches
from mpp.data.settings import DataSettings
from mpp.data.table import ImageLocation, ImageTable, Subset
from tests.support.runs import encoded

SETTINGS = DataSettings(image_size=16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)


class Arrays:
    """Flat colours in memory, encoded when they are read; row 3 cannot be decoded."""

    def __init__(self, rows: int = 8) -> None:
        self.name, self.split = "colours in memory", "all"
        self.class_names: list[str] | None = ["dark", "bright"]
        self.values = np.arange(rows) * 30
        self.labels: np.ndarray | None = (self.values > 100).astype(np.int64)
        self.source_rows = np.arange(rows)

    def __len__(self) -> int:
        return len(self.values)

    def encoded(self, row: int) -> bytes:
        return b"no image" if row == 3 else encoded(Image.new("RGB", (16, 16), (int(self.values[row]),) * 3))

    def where(self, row: int) -> ImageLocation:
        return ImageLocation(row)


@pytest.fixture
def table() -> ImageTable:
    return Arrays()


@pytest.mark.parametrize("workers", [0, 1])
def test_training_crops_come_from_any_table_in_the_run_s_order(table: ImageTable, workers: int):
    crops = TrainingCrops(table, SETTINGS, seed=2)
    rows = Order(8, seed=2).rows(np.arange(16))
    found = list(batches(crops, plan_batches(4, None).micro_batches(0, 4), workers=workers))
    used = np.where(rows == 3, 4, rows)  # the next row replaces a damaged one, label and all
    pixels = torch.cat([batch.pixels for batch in found])
    assert torch.equal(pixels, torch.from_numpy(30 * used).to(torch.uint8)[:, None, None, None].expand(16, 3, 16, 16))
    labels = [label for batch in found if batch.labels is not None for label in batch.labels.tolist()]
    assert labels == (30 * used > 100).tolist()
    assert {row for batch in found for row, _ in batch.damaged} == {3}


def test_an_objective_trains_on_a_table_and_validates_on_a_subset_of_it(table: ImageTable):
    torch.manual_seed(0)
    encoder = mpp.create_encoder("test_vit", image_size=16, patch_size=4)
    objective = mpp.MaskedPatchPrediction(encoder, target=mpp.MeanColor(), corruption=mpp.Corruption(), seed=0)
    held_out = EvaluationCrops(Subset(table, np.array([6, 5]), "held out"), SETTINGS)[np.arange(2)]

    def validate() -> float:
        with torch.no_grad():
            return objective(held_out.pixels, samples=held_out.samples).loss.item()

    before = validate()
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    for batch in batches(TrainingCrops(table, SETTINGS, seed=0), plan_batches(8, None).micro_batches(0, 20)):
        objective(batch.pixels, samples=batch.samples).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert validate() < before - 1


def test_a_subset_keeps_locations_labels_and_source_rows_of_the_whole_table(table: ImageTable):
    subset: ImageTable = Subset(table, np.array([7, 2, 3]), "some")
    again: ImageTable = Subset(subset, np.array([2, 0]), "fewer")
    assert (again.name, again.split, len(again)) == ("fewer", "all", 2)
    assert again.source_rows.tolist() == [3, 7]
    assert [str(again.where(row)) for row in range(2)] == ["row 3", "row 7"]
    assert again.encoded(1) == table.encoded(7)
    assert again.labels is not None
    assert again.labels.tolist() == [0, 1]
    assert str(ImageLocation(4, "a/b.png")) == "row 4 (a/b.png)"


# Tables of `datasets`, whose rows are read from the memory map


def files(first: int, last: int, folder: Path) -> datasets.Dataset:
    """Rows of bytes, of paths, and one without an image."""
    (folder / "file.png").write_bytes(b"a file")
    images = [{"bytes": b"%d" % number * number, "path": None} for number in range(first, last)]
    rows = [*images, {"bytes": None, "path": str(folder / "file.png")}, None]
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    table.save_to_disk(folder / f"{first}")
    return datasets.load_from_disk(str(folder / f"{first}"))  # pyright: ignore[reportReturnType]


def read(table: ImageTable, row: int) -> bytes | str:
    try:
        return table.encoded(row)
    except ValueError as error:
        return str(error)


def test_rows_are_those_that_datasets_gives_whatever_was_selected(tmp_path: Path):
    one, other = files(1, 30, tmp_path), files(40, 50, tmp_path)
    both = datasets.concatenate_datasets([one, other])
    tables = {
        "whole": both,
        "slice": both.select(range(5, 40)),
        "choice": both.select([40, 3, 29, 30, 3]),
        "choice of a slice": both.select(range(20, 42)).select([0, 21, 9]),
        "shuffled": both.shuffle(seed=0),
        "choices together": datasets.concatenate_datasets([one.select([4, 2]), other.select([1, 11, 0])]),
    }
    for name, table in tables.items():
        numbers = np.arange(len(table))
        found = ArrowTable(Selection(table, numbers, numbers), "image", None, None, name=name, split="train")
        values = table.cast_column("image", datasets.Image(decode=False))["image"]
        expected = [
            "the row holds no image" if value is None else b"a file" if value["bytes"] is None else value["bytes"]
            for value in values
        ]
        assert [read(found, row) for row in numbers] == expected, name
        again = pickle.loads(pickle.dumps(found))
        assert [read(again, row) for row in numbers] == expected, name
        assert [found.where(row).path for row in numbers] == [value and value["path"] for value in values]


def test_a_table_that_has_been_read_is_sent_to_a_process_without_its_images(tmp_path: Path):
    large = [{"bytes": bytes(10**6), "path": None}] * 3
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict({"image": large}, features=features).save_to_disk(tmp_path / "saved")
    table = datasets.load_from_disk(str(tmp_path / "saved"))
    rows = np.arange(3)
    found = ArrowTable(Selection(table, rows, rows), "image", None, None, name="large", split="train")
    assert len(found.encoded(2)) == 10**6
    assert len(pickle.dumps(found)) < 10**5


# Shared memory


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system shares memory otherwise")
def test_batches_that_do_not_fit_in_shared_memory_are_refused_with_what_to_set(table: ImageTable, monkeypatch):
    crops = TrainingCrops(table, SETTINGS, seed=0)
    usage = namedtuple("usage", "total used free")
    needed = 2 * 3 * 4 * 3 * 16 * 16  # workers, two batches ready and one in use, images, bytes of each

    def first(free: int, workers: int) -> int:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free, 0, free))
        return len(next(batches(crops, plan_batches(4, None).micro_batches(0, 4), workers=workers)).samples)

    assert first(needed, 2) == 4
    assert first(0, 0) == 4
    with pytest.raises(ValueError, match=r"lower data\.workers \(now 2\) or training\.micro_batch_size.*--shm-size"):
        first(needed - 1, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="/dev/shm has 0 MiB free"):
        first(needed, 2)
