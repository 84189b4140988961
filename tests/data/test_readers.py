"""Archives, tables of paths and saved data sets: the same images, classes and splits as in the folder they are of."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mpp.data.settings import DataSettings
from mpp.data.splits import Splits, open_splits
from tests.support.runs import encoded, picture


def opened(source: Path, *, labelled: bool = False, **settings) -> Splits:
    return open_splits(DataSettings(source=str(source), image_size=16, **settings), seed=0, labelled=labelled)


def classes_of(splits: Splits) -> dict[bytes, str]:
    """The class of every image, by its file."""
    found = {}
    for rows in splits:
        assert rows.labels is not None
        assert rows.class_names is not None
        found |= {rows.encoded(row): rows.class_names[rows.labels[row]] for row in range(len(rows))}
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(24):
        place = tmp_path / "photos" / ("cat", "dog", "NA")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(encoded(picture(seed=number)))
    (tmp_path / "photos" / "notes.txt").write_text("notes")
    return tmp_path / "photos"


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def archived(folder: Path, kind: str) -> Path:
    path = folder.parent / f"all.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in (*files_of(folder), folder / "notes.txt"):
                archive.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            archive.add(folder, folder.name)
    return path


def tabled(folder: Path, kind: str) -> Path:
    paths = files_of(folder)
    names = [str(path.relative_to(folder.parent)) for path in paths]
    table = pd.DataFrame({"file": names, "label": [path.parent.name for path in paths], "note": "x.y"})
    path = folder.parent / f"all.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep=";" if kind == "csv" else "\t")
    return path


def test_archives_and_tables_hold_the_images_and_classes_of_their_folder(folder: Path):
    expected = classes_of(opened(folder, labelled=True))
    assert len(expected) == 24
    assert set(expected.values()) == {"cat", "dog", "NA"}
    for kind in ("zip", "tar", "tar.gz", "tgz"):
        assert classes_of(opened(archived(folder, kind), labelled=True)) == expected, kind
    for kind in ("csv", "tsv", "parquet"):
        assert classes_of(opened(tabled(folder, kind), labelled=True)) == expected, kind


def test_an_archive_that_changes_is_read_anew(folder: Path):
    archived(folder, "zip")
    before = classes_of(opened(folder.parent / "all.zip", labelled=True))
    (folder / "cat" / "new.png").write_bytes(encoded(picture(seed=99)))
    assert len(classes_of(opened(archived(folder, "zip"), labelled=True))) == len(before) + 1


def test_folders_in_an_archive_that_are_called_as_splits_are_splits(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(12):
            split, name = ("train", "val")[number % 4 == 0], "ab"[number % 2]
            archive.writestr(f"set/{split}/{name}/{number}.png", encoded(picture(seed=number)))
    splits = opened(tmp_path / "a.zip", labelled=True)
    assert [len(rows) for rows in splits] == [9, 3]
    assert splits.validation.split == "validation"
    assert splits.summary == "found 12 images in 3 folders (png): 9 in train, 3 in validation, held out 3 (validation)"


def test_a_column_of_splits_divides_a_table_and_paths_may_be_absolute(folder: Path):
    paths = files_of(folder)
    splits = ["test" if number < 5 else "train" for number in range(24)]
    table = folder.parent / "elsewhere" / "all.csv"
    table.parent.mkdir()
    pd.DataFrame({"split": splits, "path": [str(p) for p in paths], "label": np.arange(24) % 2}).to_csv(table)
    found = opened(table, labelled=True)
    assert [len(rows) for rows in found] == [19, 5]
    assert [found.validation.encoded(row) for row in range(5)] == [path.read_bytes() for path in paths[:5]]
    assert found.train.class_names == ["0", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\nphotos/cat/0.png,photos/cat/0.png\n", r"has 2 columns of paths to images \(a, b\) among a, b; name one"),
        ("a,b\n1,2\n", r"has no column of paths to images among a, b"),
        (
            "a\n" + "gone/1.png\n" * 4,
            r"4 of 4 images that all\.csv names do not exist; the first is row 0: gone/1\.png",
        ),
    ],
)
def test_what_is_wrong_with_a_table_of_paths_is_named(folder: Path, text: str, message: str):
    (folder.parent / "all.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(folder.parent / "all.csv")


def test_saved_data_sets_are_read(folder: Path):
    table = datasets.load_dataset("imagefolder", data_dir=str(folder))["train"]
    expected = classes_of(opened(folder, labelled=True))
    table.save_to_disk(folder.parent / "one")
    assert set(classes_of(opened(folder.parent / "one", labelled=True)).values()) == set(expected.values())
    assert sum(map(len, opened(folder.parent / "one"))) == 24
    table.train_test_split(6, seed=0).save_to_disk(folder.parent / "two")
    assert [len(rows) for rows in opened(folder.parent / "two")] == [18, 6]


# The line at the start


def test_the_line_at_the_start_counts_what_is_there(folder: Path):
    Image.new("RGB", (20, 20)).save(folder / "cat" / "x.jpg")
    assert opened(folder).summary == (
        "found 25 images in 3 folders (png, jpg), ignored 1 other file, held out 2 (a tenth)"
    )
    few = opened(folder, images=10, validation_images=1).summary
    assert few.endswith(", train on 10 of train, held out 1 (chosen from 2, a tenth)")


@pytest.mark.parametrize(("columns", "said"), [("id,weight", True), ("file_name,label", False)])
def test_unrelated_metadata_is_ignored_with_a_word(folder: Path, columns: str, said: bool):
    rows = [str(path.relative_to(folder)) for path in files_of(folder)]
    (folder / "metadata.csv").write_text("\n".join([columns, *(f"{row},1" for row in rows)]))
    splits = opened(folder)
    assert sum(map(len, splits)) == 24
    assert ("metadata.csv (it has no column file_name)" in splits.summary) == said


def test_held_out_images_are_limited_to_the_same_ones_for_every_seed(folder: Path):
    settings = DataSettings(source=str(folder), image_size=16, split="train[:4]", validation_split="train[4:]")
    every = open_splits(settings, seed=0).validation
    some = [open_splits(settings.model_copy(update={"validation_images": 7}), seed=seed).validation for seed in (0, 5)]
    assert len(every) == 20
    assert len(some[0]) == 7
    assert some[0].source_rows.tolist() == some[1].source_rows.tolist()
    assert set(some[0].source_rows) < set(every.source_rows)
    assert some[0].source_rows.tolist() != every.source_rows[:7].tolist()
    more = open_splits(settings.model_copy(update={"validation_images": 70}), seed=0)
    assert len(more.validation) == 20


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_may_have_the_column_of_paths_alone(folder: Path, kind: str):
    tabled(folder, kind)
    path = folder.parent / f"all.{kind}"
    table = pd.read_parquet(path) if kind == "parquet" else pd.read_csv(path, sep=";")
    alone = table[["file"]]
    alone.to_parquet(path) if kind == "parquet" else alone.to_csv(path, index=False)
    found = opened(path)
    assert sorted(rows.encoded(row) for rows in found for row in range(len(rows))) == sorted(
        file.read_bytes() for file in files_of(folder)
    )
    with pytest.raises(ValueError, match=rf"all\.{kind} has no column besides the images \(file\), but labels are"):
        opened(path, labelled=True)


def test_paths_are_relative_to_the_image_folder_and_the_labels_are_found_by_themselves(folder: Path):
    expected = classes_of(opened(folder, labelled=True))
    paths = files_of(folder)
    columns = {
        "number": range(24),  # as many values as rows: no classes
        "what": [path.parent.name for path in paths],
        "file": [str(path.relative_to(folder)) for path in paths],
        "note": "x.y",  # a single value
        "width": [640, 480] * 12,  # too large to be numbers of classes
    }
    elsewhere = folder.parent / "notes" / "all.csv"
    elsewhere.parent.mkdir()
    pd.DataFrame(columns).to_csv(elsewhere, index=False)
    assert classes_of(opened(elsewhere, labelled=True, image_folder=str(folder))) == expected
    with pytest.raises(ValueError, match=r"notes; data\.image_folder sets another"):
        opened(elsewhere)
    pd.DataFrame({**columns, "who": ["me", "you"] * 12}).to_csv(elsewhere, index=False)
    with pytest.raises(ValueError, match=r"of the columns 'number', 'what', 'note', 'width', 'who' with data\.label"):
        opened(elsewhere, labelled=True, image_folder=str(folder))
    found = opened(elsewhere, labelled=True, image_folder=str(folder), label_column="who")
    assert found.train.class_names == ["me", "you"]


def test_an_image_folder_is_refused_where_it_would_do_nothing(folder: Path):
    settings = DataSettings(source=str(folder), image_folder=str(folder))
    with pytest.raises(ValueError, match=r"is for a CSV or Parquet table of paths, and data.source is"):
        settings.check_paths()
    table = tabled(folder, "csv")
    with pytest.raises(ValueError, match=r"phots is no folder; did you mean .*photos\?"):
        DataSettings(source=str(table), image_folder=str(folder.parent / "phots")).check_paths()
