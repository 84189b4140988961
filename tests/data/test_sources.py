"""Order, crops and sources: pure functions of the seed and the sample number, whatever the file."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mpp import randomness
from mpp.data.crops import ATTEMPTS, WORDS_PER_CROP, centre, cut, random_crop
from mpp.data.damaged import DecodedImages, TooManyDamagedError
from mpp.data.decode import decode
from mpp.data.loader import EvaluationCrops, TrainingCrops, batches
from mpp.data.sampler import Order, plan_batches
from mpp.data.settings import DataSettings
from mpp.data.splits import open_splits
from mpp.data.table import Subset
from tests.support.runs import encoded, parquet_folder, picture, scenes, write_parquet

# Randomness


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors_in_numpy_and_torch(counter, key, expected):
    for make in (lambda word: np.array([word]), lambda word: torch.tensor([word])):
        words = randomness.philox(tuple(make(word) for word in counter), randomness.Key(*key))
        assert tuple(int(word[0]) for word in words) == expected


def test_permutations_are_uniform():
    key = randomness.key(0, "test")
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(6000):
        order = tuple(randomness.permutation(key, epoch, 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 1000) < 5 * 29 for count in counts.values())  # 5 standard deviations


# Order


def test_every_epoch_is_a_permutation_and_batches_run_across_its_end():
    order = Order(10, seed=3)
    rows = np.concatenate([order.rows(np.arange(start, start + 4)) for start in range(0, 40, 4)])
    epochs = rows.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert (Order(10, seed=4).rows(np.arange(10)) != epochs[0]).any()


@pytest.mark.parametrize(("micro", "processes"), [(24, 1), (6, 1), (3, 2), (12, 2), (2, 4)])
def test_every_topology_sees_the_same_samples_in_each_step(micro: int, processes: int):
    plans = [plan_batches(24, micro, rank=rank, processes=processes) for rank in range(processes)]
    parts = [list(each.micro_batches(5, 8)) for each in plans]
    for step in range(3):
        per_step = plans[0].accumulation
        seen = np.concatenate([np.concatenate(part[step * per_step : (step + 1) * per_step]) for part in parts])
        assert sorted(seen) == list(range((5 + step) * 24, (6 + step) * 24))


def test_what_does_not_divide_is_refused_with_all_the_numbers():
    with pytest.raises(ValueError, match=r"batch_size 100 .* 3 processes"):
        plan_batches(100, None, processes=3)
    with pytest.raises(ValueError, match=r"batch_size 96 .* micro_batch_size 20 × 2 processes = 40"):
        plan_batches(96, 20, processes=2)


# Crops


def test_random_crops_lie_inside_and_have_the_areas_and_ratios_asked_for():
    settings = DataSettings(crop_scale=(0.2, 0.9), crop_ratio=(0.5, 2.0), image_size=8)
    key = randomness.key(0, "crop")
    draws = np.stack(randomness.words(key, np.arange(4000)[:, None], np.arange(WORDS_PER_CROP)[None, :]), -1)
    crops = [random_crop(draw, 300, 400, settings) for draw in draws]
    areas = np.array([crop.height * crop.width / 120000 for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert all(c.top >= 0 and c.left >= 0 and c.top + c.height <= 300 and c.left + c.width <= 400 for c in crops)
    assert 0.19 < areas.min() < 0.22
    assert 0.85 < areas.max() < 0.91
    assert 0.49 < ratios.min() < 0.52
    assert 1.9 < ratios.max() < 2.05
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 0.04
    small = [crop for crop in crops if crop.height < 200 and crop.width < 200]
    assert abs(np.mean([crop.top / (300 - crop.height) for crop in small]) - 0.5) < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_the_smallest_images_can_be_cropped(size: tuple[int, int]):
    settings = DataSettings(image_size=4)
    pixels = torch.full((3, *size), 7, dtype=torch.uint8)
    words = np.stack(randomness.words(randomness.key(0, "crop"), np.zeros(WORDS_PER_CROP, np.int64),
                                      np.arange(WORDS_PER_CROP)), -1)  # fmt: skip
    assert len(words) == ATTEMPTS + 1
    for crop in (cut(pixels, random_crop(words, *size, settings), settings), centre(pixels, settings)):
        assert crop.shape == (3, 4, 4)
        assert (crop == 7).all()


def test_the_centre_crop_is_that_of_pillow_s_geometry():
    pixels = torch.zeros(3, 40, 80, dtype=torch.uint8)
    pixels[:, 12:28, 32:48] = 255
    crop = centre(pixels, DataSettings(image_size=16, crop_pct=0.4))  # shorter side to 40, centre 16 × 16
    assert (crop == 255).all()


# Loader


def settings_of(source: Path | str, **more: object) -> DataSettings:
    return DataSettings(source=str(source), image_size=16, workers=0, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_cache(tiny_data: Path, cache: bool, workers: int):
    settings = settings_of(tiny_data)
    rows = open_splits(settings, 0, labelled=True).train
    numbers = list(plan_batches(20, None).micro_batches(0, 12))  # past the end of two epochs of 96
    plain = TrainingCrops(rows, settings, seed=5)
    loaded = list(
        batches(TrainingCrops(rows, settings.model_copy(update={"cache": cache}), seed=5), numbers, workers=workers)
    )
    assert len(loaded) == 12
    for batch, samples in zip(loaded, numbers, strict=True):
        expected = plain[samples]
        assert batch.pixels.dtype == torch.uint8
        assert torch.equal(batch.pixels, expected.pixels)
        assert torch.equal(batch.samples, torch.from_numpy(samples))
        assert torch.equal(batch.labels, expected.labels)


def test_a_crop_depends_on_its_sample_number_alone(tiny_data: Path):
    settings = settings_of(tiny_data)
    crops = TrainingCrops(open_splits(settings, 0).train, settings, seed=5)
    together, alone = crops[np.array([7, 300, 2])], crops[np.array([300])]
    assert torch.equal(together.pixels[1], alone.pixels[0])
    other = TrainingCrops(crops.images.rows, settings, seed=6)
    assert not torch.equal(other[np.array([300])].pixels, alone.pixels)


def test_labels_belong_to_their_images(tiny_data: Path):
    settings = settings_of(tiny_data)
    rows = open_splits(settings, 0, labelled=True).train
    crops = TrainingCrops(rows, settings, seed=0)
    order = Order(96, seed=0).rows(np.arange(96))
    assert torch.equal(crops[np.arange(96)].labels, torch.from_numpy(order % 3))


# Sources


def write_folder(folder: Path, *, labelled: bool) -> Path:
    for number in range(12):
        place = folder / ("cat" if number % 2 else "dog") if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        picture(seed=number).save(place / f"{number:02d}.png")
    return folder


def test_a_folder_of_images_with_and_without_classes(tmp_path: Path):
    labelled = open_splits(settings_of(write_folder(tmp_path / "a", labelled=True)), 0, labelled=True)
    assert labelled.train.class_names == ["cat", "dog"]
    assert len(labelled.train) + len(labelled.validation) == 12
    bare = open_splits(settings_of(write_folder(tmp_path / "b", labelled=False)), 0)
    assert bare.train.labels is None
    with pytest.raises(ValueError, match=r"labels are needed"):
        open_splits(settings_of(tmp_path / "b"), 0, labelled=True)


def test_the_hold_out_is_the_same_for_every_seed_and_disjoint(tmp_path: Path):
    folder = write_folder(tmp_path / "b", labelled=False)

    def contents(seed: int) -> list[set[bytes]]:
        return [{rows.encoded(row) for row in range(len(rows))} for rows in open_splits(settings_of(folder), seed)]

    train, validation = contents(0)
    assert not train & validation
    assert len(train | validation) == 12
    # what a run with one seed has learnt, another is not judged by
    assert all(contents(seed) == [train, validation] for seed in range(6))


def test_a_parquet_file_a_webdataset_and_slices_of_splits(tiny_data: Path, tmp_path: Path):
    one = open_splits(settings_of(tiny_data / "train.parquet", split="train[:50%]", validation_split="train[90:]"), 0)
    assert (len(one.train), len(one.validation)) == (48, 6)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number in range(6):
            for name, data in (
                (f"{number}.png", encoded(picture(seed=number))),
                (f"{number}.cls", b"%d" % (number % 2)),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    web = open_splits(settings_of(tmp_path / "shard.tar", label_column="cls"), 0, labelled=True)
    assert web.train.class_names == ["0", "1"]
    assert len(web.train) + len(web.validation) == 6
    shown = {decode(rows.encoded(row)).numpy().tobytes() for rows in web for row in range(len(rows))}
    assert shown == {np.array(picture(seed=n)).transpose(2, 0, 1).tobytes() for n in range(6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_column": "imag"}, r"no column 'imag' among image, label; did you mean image\?"),
        ({"label_column": "labels"}, r"no column 'labels' among image, label; did you mean label\?"),
        ({"split": "trian"}, r"split 'trian' cannot be taken: .*train \(96 rows\), test \(32 rows\)"),
        ({"split": "train[:0]"}, r"training split is empty"),
        ({"validation_split": "val"}, r"validation_split 'val' cannot be taken"),
    ],
)
def test_wrong_columns_and_splits_are_named_with_what_there_is(tiny_data: Path, change: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        open_splits(settings_of(tiny_data, **change), 0)


@pytest.mark.parametrize("number", [10**6, 10**9, 2**62, -(10**9)])
def test_a_label_column_of_ids_is_refused_by_its_name(tmp_path: Path, number: int):
    columns = {"image": [picture(seed=n) for n in range(12)], "owner": [number + n for n in range(12)]}
    features = datasets.Features({"image": datasets.Image(), "owner": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match=r"column 'owner'.*\b(class|classes)\b") as caught:
        open_splits(settings_of(tmp_path / "train.parquet", label_column="owner"), 0, labelled=True)
    assert str(number)[:4] in str(caught.value)
    assert len(str(caught.value)) < 500


def test_missing_and_empty_places_are_named(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"images is an empty folder"):
        open_splits(settings_of(tmp_path / "images"), 0)
    with pytest.raises(ValueError, match=r"imagse does not exist; did you mean .*images\?"):
        open_splits(settings_of(tmp_path / "imagse"), 0)
    with pytest.raises(ValueError, match=r"embedded:z' does not exist; there are embedded:a, embedded:b"):
        open_splits(DataSettings(source="embedded:z"), 0)


# Damaged files


def test_a_damaged_image_is_replaced_by_the_next_good_one(tmp_path: Path):
    folder = write_folder(tmp_path / "b", labelled=False)
    for number in (3, 4):
        path = folder / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    rows = open_splits(settings_of(folder, validation_split="train[11:]"), 0).train
    for cache in (False, True):
        loaded = DecodedImages(rows, cache=cache).load(3)
        assert loaded.row == 5
        assert [row for row, _ in loaded.damaged] == [3, 4]
        assert torch.equal(loaded.pixels, torch.from_numpy(np.array(picture(seed=5))).permute(2, 0, 1))
    assert "03.png" in str(rows.where(3))


def test_nothing_but_damaged_images_stops_at_once_with_examples(tmp_path: Path):
    folder = write_folder(tmp_path / "b", labelled=False)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    settings = settings_of(folder)
    images = open_splits(settings, 0).train
    for crops in (TrainingCrops(images, settings, 0), EvaluationCrops(images, settings)):
        with pytest.raises(TooManyDamagedError, match=r"cannot be decoded:\n  row \d+ \(.*png\): "):
            next(batches(crops, [np.array([0])], workers=2))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    "change",
    [{}, {"split": "train[10:]"}, {"split": "train[25%:75%]", "validation_split": "train[75%:]"},
     {"split": "train[60:]+train[:29]"}, {"images": 12}, {"split": "train[10:]", "images": 12}],
    ids=str,
)  # fmt: skip
def test_a_damaged_row_is_called_by_its_number_in_the_data_set_s_own_split(
    tmp_path: Path, change: dict[str, Any], seed: int
):
    contents = [encoded(picture(seed=number)) for number in range(80)]
    for number in range(0, 80, 5):
        contents[number] = contents[number][: 60 + number]
    known = {content: f"row {number} ({number:02d}.png)" for number, content in enumerate(contents)}
    write_parquet(tmp_path / "train.parquet", [(f"{n:02d}.png", content) for n, content in enumerate(contents)])
    splits = open_splits(settings_of(tmp_path / "train.parquet", **change), seed)
    for rows in (*splits, Subset(splits.train, np.array([8, 1, 5, 6, 7, 11]), "some")):
        expected = [known[rows.encoded(row)] for row in range(len(rows))]
        assert [str(rows.where(row)) for row in range(len(rows))] == expected
        found = {str(rows.where(bad)) for row in range(len(rows)) for bad, _ in DecodedImages(rows).load(row).damaged}
        assert found == {name for name in expected if int(name.split()[1]) % 5 == 0}
    if "split" not in change and "images" not in change:
        assert {str(rows.where(row)) for rows in splits for row in range(len(rows))} == set(known.values())


def test_rows_of_a_second_split_are_counted_from_its_own_start(tmp_path: Path):
    splits = open_splits(settings_of(parquet_folder(tmp_path, scenes(20)), split="train[3:]"), 0)
    assert [str(splits.train.where(row)) for row in (0, 16)] == ["row 3 (scene-003.png)", "row 19 (scene-019.png)"]
    assert [str(splits.validation.where(row)) for row in (0, 7)] == ["row 0 (test-0.png)", "row 7 (test-7.png)"]


def hidden(folder: Path, test: list[int], validation: list[int]) -> Path:
    """Labelled images to train on, and two other splits with these labels."""
    for split, labels in (("train", [0, 1, 2, 0]), ("validation", validation), ("test", test)):
        images = [(f"{split}-{i}.png", encoded(picture(seed=i))) for i in range(4)]
        write_parquet(folder / f"{split}.parquet", images, labels)
    return folder


@pytest.mark.parametrize(
    ("test", "validation", "taken"),
    [([0, 1, 2, 0], [0, 1, 2, 0], "test"), ([-1] * 4, [0, 1, 2, 0], "validation"), ([-1] * 4, [-1] * 4, "one in 10")],
)
def test_a_split_that_hides_its_labels_is_passed_over_with_labels_and_without_alike(
    tmp_path: Path, test: list[int], validation: list[int], taken: str
):
    settings = settings_of(hidden(tmp_path, test, validation))
    splits = open_splits(settings, 0, labelled=True, held_out=("test", "validation"))
    assert splits.validation.split.startswith(taken)
    assert splits.validation.labels is not None
    assert splits.validation.labels.min() >= 0
    bare = open_splits(settings, 0, held_out=("test", "validation"))  # of masked patch prediction, which needs none
    assert bare.validation.split == splits.validation.split
    assert bare.train.source_rows.tolist() == splits.train.source_rows.tolist()


def test_data_whose_training_labels_are_hidden_too_are_images_without_labels(tmp_path: Path):
    folder = hidden(tmp_path, [-1] * 4, [-1] * 4)
    write_parquet(folder / "train.parquet", [(f"{i}.png", encoded(picture(seed=i))) for i in range(4)], [-1] * 4)
    assert open_splits(settings_of(folder), 0).validation.split == "validation"


def test_source_rows_are_unique_over_all_splits(tmp_path: Path):
    folder = hidden(tmp_path, [0, 1, 2, 0], [0, 1, 2, 0])
    one = open_splits(settings_of(folder, split="train+test[:50%]", validation_split="validation"), 0)
    assert (len(one.train), len(one.validation)) == (6, 4)
    assert len({*one.train.source_rows, *one.validation.source_rows}) == 10
    other = open_splits(settings_of(folder, split="test[25%:]", validation_split="train"), 0)
    (shared,) = set(other.train.source_rows) & set(one.train.source_rows)
    row, same = ([*rows.source_rows].index(shared) for rows in (other.train, one.train))
    assert other.train.encoded(row) == one.train.encoded(same)
    assert {*other.validation.source_rows} < {*one.train.source_rows}


def test_a_split_that_is_trained_on_beside_another_is_not_held_out(tmp_path: Path):
    settings = settings_of(hidden(tmp_path, [0, 1, 2, 0], [0, 1, 2, 0]), split="train + validation")
    splits = open_splits(settings, 0, labelled=True)
    assert (len(splits.train), splits.validation.split) == (8, "test")


def test_a_hidden_split_that_is_asked_for_by_name_is_refused(tmp_path: Path):
    settings = settings_of(hidden(tmp_path, [-1] * 4, [0, 1, 2, 0]), validation_split="test")
    with pytest.raises(ValueError, match=r"4 of 4 labels .* the first is row 0 with -1"):
        open_splits(settings, 0, labelled=True)


def test_in_pre_training_the_held_out_split_is_validation_then_test_then_a_tenth(tmp_path: Path):
    settings = settings_of(hidden(tmp_path, [0, 1, 2, 0], [0, 1, 2, 0]))
    for taken in ("validation", "test", "one in 10 of train"):
        assert open_splits(settings, 0, labelled=True).validation.split == taken
        (tmp_path / f"{taken}.parquet").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["strings", "integers"])
def test_classes_are_those_of_the_whole_split_whichever_rows_are_held_out_or_chosen(tmp_path: Path, kind: str):
    """Each class has but one or two rows, so that some are not among those that are trained on."""
    labels = [number // 2 for number in range(24)]
    column = [f"class {number:02d}" for number in labels] if kind == "strings" else labels
    images = [{"bytes": encoded(picture(seed=i)), "path": None} for i in range(24)]
    table = datasets.Dataset.from_dict({"image": images, "kind": column})
    table.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train.parquet"))
    settings = settings_of(tmp_path / "train.parquet", label_column="kind", images=6)
    for seed in range(6):
        splits = open_splits(settings, seed, labelled=True)
        assert len(splits.train.class_names or ()) == 12
        for rows in splits:
            assert rows.labels is not None
            assert rows.labels.tolist() == [labels[rows.where(row).row] for row in range(len(rows))]


def test_a_label_that_train_lacks_is_named_as_it_is_at_its_own_row(tmp_path: Path):
    for split, kinds in (("train", ["cat", "dog", "cat"]), ("test", ["dog", "cat", "cow"])):
        images = [{"bytes": encoded(picture(seed=i)), "path": None} for i in range(3)]
        table = datasets.Dataset.from_dict({"image": images, "kind": kinds})
        table.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / f"{split}.parquet"))
    settings = settings_of(tmp_path, label_column="kind", validation_split="test[1:]")
    with pytest.raises(ValueError, match=r"the first is row 2 with 'cow'"):
        open_splits(settings, 0, labelled=True)


@pytest.mark.parametrize("column", ["image", "box"])
def test_a_column_that_holds_no_labels_is_refused_where_there_is_a_second_split_too(tmp_path: Path, column: str):
    for split in ("train", "test"):
        images = [{"bytes": encoded(picture(seed=i)), "path": None} for i in range(3)]
        table = datasets.Dataset.from_dict({"image": images, "box": [[1, 2, 3, 4]] * 3})
        table.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / f"{split}.parquet"))
    with pytest.raises(ValueError, match="holds no labels"):
        open_splits(settings_of(tmp_path, label_column=column), 0, labelled=True)


@pytest.mark.parametrize(("height", "width"), [(1, 20000), (20000, 1), (6, 47), (6, 300)])
def test_the_centre_of_a_very_long_image_takes_no_more_room_than_it_needs(height: int, width: int):
    """Enlarged whole, the first would be 1.2 GB."""
    rows = torch.linspace(0, 255, height * width).view(1, height, width).expand(3, -1, -1).to(torch.uint8)
    settings = DataSettings(image_size=64)
    found = centre(rows, settings)
    assert found.shape == (3, 64, 64)
    if max(height, width) < 1000:
        whole = F.center_crop(F.resize(rows, [64], antialias=True), [64, 64])
        assert (found.int() - whole.int()).abs().max() <= (0 if max(height, width) <= 8 * 6 else 1)
