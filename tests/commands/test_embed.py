"""`mpp embed` and `mpp predict`: features and classes of a folder of images, as other tools read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import mpp
from mpp.data.inputs import image_files
from tests.support.forkserver import ForkServer, good, refused
from tests.support.runs import RECIPES, arguments, pretrain

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """12 images of three folders, one of them damaged."""
    folder = tmp_path_factory.mktemp("mine") / "photos"
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 120, (20, 24, 3), dtype=np.uint8)
        pixels[..., 2 - number % 3] += 130
        path = folder / CLASSES[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "green" / "04.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, images) -> Path:
    run = tmp_path_factory.mktemp("embed") / "run"
    good(pretrain("mean_color.yaml", arguments(run, images, "training.duration.steps=2")))
    return run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, photos, commands: ForkServer) -> Path:
    run = tmp_path_factory.mktemp("predict") / "run"
    small = ("data.image_size=16", "data.workers=0", "data.max_bad_share=1", "encoder.name=test_vit",
             "encoder.patch_size=4", "encoder.arguments={}", "training.batch_size=4", "training.duration.steps=3",
             "optimizer.warmup.steps=1", "labels.dev=0", "search.lr=[]", "early_stopping.patience=0")  # fmt: skip
    settings = (f"data.source={photos}", f"output_dir={run}", *small)
    good(commands.run("mpp.finetune", RECIPES / "finetune.yaml", *settings))
    return run


def test_features_are_those_of_the_python_function_with_a_name_for_each(
    encoder: Path, photos: Path, tmp_path, commands: ForkServer
):
    given = (f"encoder={encoder}", f"data.source={photos}", "data.workers=0")
    said = good(commands.run("mpp.embed", *given, f"output_dir={tmp_path}")).text
    values, table = np.load(tmp_path / "features.npy"), pd.read_parquet(tmp_path / "features.parquet")
    assert f"12 images of {photos}, train" in said
    assert "1 image cannot be decoded: NaN in its place" in said
    damaged = table["name"].str.endswith("04.png").to_numpy()
    assert damaged.sum() == 1
    assert np.isnan(values[damaged]).all()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(np.stack(list(table["feature"])), values)
    assert list(table["class"]) == [Path(name).parent.name for name in table["name"]]
    order = {path.relative_to(photos).as_posix(): number for number, path in enumerate(map(Path, image_files(photos)))}
    assert [order[name] for name in table["name"]] == list(range(12)), "the order of the sorted paths"
    known = [photos / name for name in table["name"] if not name.endswith("04.png")]
    expected = mpp.features(encoder, known, progress=False, device="cpu")
    np.testing.assert_allclose(values[~damaged], expected, rtol=1e-5, atol=1e-6)


def test_a_layer_and_a_pool_can_be_chosen_and_what_is_missing_is_named(
    encoder: Path, photos: Path, tmp_path, commands: ForkServer
):
    given = (f"encoder={encoder}", f"data.source={photos}", f"output_dir={tmp_path}")
    good(commands.run("mpp.embed", *given, "features.block=1", "features.pool=both"))
    names = pd.read_parquet(tmp_path / "features.parquet")["name"]
    known = [photos / name for name in names if not name.endswith("04.png")]
    expected = mpp.features(encoder, known, layer=1, pool="both", progress=False, device="cpu")
    values = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(values[~np.isnan(values[:, 0])], expected, rtol=1e-5, atol=1e-6)
    refused(commands.run("mpp.embed", *given[1:]), "encoder.source", "give encoder=RUN")
    refused(commands.run("mpp.embed", *given, "features.block=99"), "blocks 1 to")


def test_predictions_are_those_of_timm_on_the_exported_classifier(
    classifier: Path, photos: Path, tmp_path, commands: ForkServer
):
    given = (f"encoder={classifier}", f"data.source={photos}", f"output_dir={tmp_path}")
    said = good(commands.run("mpp.predict", *given)).text
    assert (tmp_path / "classes.txt").read_text().split() == list(CLASSES)
    values, table = np.load(tmp_path / "probabilities.npy"), pd.read_parquet(tmp_path / "predictions.parquet")
    model = timm.create_model(f"local-dir:{classifier / 'classifier'}", pretrained=True).eval()
    assert model.num_classes == 3
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))  # pyright: ignore
    found = []
    for name, row in zip(table["name"], values, strict=True):
        if name.endswith("04.png"):
            assert np.isnan(row).all()
            continue
        with torch.no_grad():
            expected = model(transform(Image.open(photos / name).convert("RGB"))[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(row, expected, atol=0.02)  # timm resizes with PIL
        found.append(CLASSES[row.argmax()])
    known = table[~table["name"].str.endswith("04.png")]
    assert list(known["predicted"]) == found
    np.testing.assert_allclose(known["probability"], values[~np.isnan(values[:, 0])].max(1))
    right = np.mean(table["predicted"] == table["class"])
    line = " ".join(said.split())
    assert f"{right:.1%} of 12 images are classified as the name of their folder says, taken for their class;" in line


def predicted(commands: ForkServer, classifier: Path, source: Path, out: Path, *more: str) -> tuple[pd.DataFrame, str]:
    given = (f"encoder={classifier}", f"data.source={source}", "data.workers=0", f"output_dir={out}", *more)
    said = good(commands.run("mpp.predict", *given)).text
    return pd.read_parquet(out / "predictions.parquet"), " ".join(said.split())


def test_folders_that_are_no_classes_give_neither_labels_nor_an_accuracy(
    classifier: Path, photos: Path, tmp_path: Path, commands: ForkServer
):
    months = tmp_path / "months"
    for number, path in enumerate(sorted(photos.glob("*/*.png"))):
        month = months / f"2024-0{1 + number % 3}"
        month.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, month / path.name)
    table, said = predicted(commands, classifier, months, tmp_path / "out")
    assert not {"label", "class"} & set(table.columns)
    assert "are classified as" not in said
    words = "no accuracy: the folders 2024-01, 2024-02, 2024-03 are no classes of the classifier (blue, green, red)"
    assert words in said


def test_labels_have_the_classifier_s_numbers_whichever_classes_are_there(
    classifier: Path, photos: Path, tmp_path: Path, commands: ForkServer
):
    """Of a table of paths, whose names are relative to the images' folder."""
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.glob("[gr]*/*.png"))
    (tmp_path / "lists").mkdir()
    rows = [f"{path},{Path(path).parent}" for path in paths]
    (tmp_path / "lists" / "some.csv").write_text("\n".join(["file,label", *rows]))
    source, folder = tmp_path / "lists" / "some.csv", f"data.image_folder={photos}"
    table, said = predicted(commands, classifier, source, tmp_path / "out", folder, "data.max_bad_share=1")
    assert list(table["name"]) == paths
    assert list(table["class"]) == [Path(path).parent.name for path in paths]
    assert list(table["label"]) == [CLASSES.index(name) for name in table["class"]]
    right = (table["predicted"] == table["class"]).mean()
    assert f"{right:.1%} of 8 images are classified as their label says; standard error" in said


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_in_an_archive_are_those_in_it(
    kind: str, encoder: Path, photos: Path, tmp_path: Path, commands: ForkServer
):
    archive = shutil.make_archive(str(tmp_path / "all"), kind, photos)
    given = (f"encoder={encoder}", f"data.source={archive}", "data.workers=0", f"output_dir={tmp_path / 'out'}")
    good(commands.run("mpp.embed", *given))
    names = pd.read_parquet(tmp_path / "out" / "features.parquet")["name"]
    assert set(names) == {path.relative_to(photos).as_posix() for path in photos.glob("*/*.png")}


def test_an_encoder_is_no_classifier(encoder: Path, photos: Path, tmp_path, commands: ForkServer):
    given = (f"encoder={encoder}", f"data.source={photos}", f"output_dir={tmp_path / 'out'}")
    refused(commands.run("mpp.predict", *given), "without classes")
