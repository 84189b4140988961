"""`mpp.evaluate`, whole: numbers from the features on disk, choices from a dev split, refusals in words."""

from __future__ import annotations

import io
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import mpp
from mpp.data.label_subsets import dev_split, fraction_rows
from mpp.evaluate import main
from mpp.evaluation.evaluators import Options, scores
from mpp.evaluation.features import FeatureLayer, Features
from mpp.evaluation.settings import FewShotSettings, NeighbourSettings, ProbeSettings
from tests.support.downstream import (
    EVALUATE,
    PATCH,
    SIZE,
    TEST,
    TRAIN,
    features_on_disk,
    good,
    refused,
    results,
    tinted,
    written,
)
from tests.support.forkserver import Command, ForkServer
from tests.support.runs import write_parquet

Evaluate = Callable[..., Command]
LAYERS = [(block, pool) for block in (1, 2) for pool in ("token", "avg", "both")]


@pytest.fixture
def evaluate(commands: ForkServer, tinted_images: Path, tmp_path: Path) -> Evaluate:
    """Run the command into `tmp_path / "out"`."""
    recipe = written(tmp_path / "recipe.yaml", EVALUATE, tinted_images)
    return lambda *changes: commands.run("mpp.evaluate", recipe, f"output_dir={tmp_path / 'out'}", *changes)


@pytest.fixture(scope="module")
def evaluated(commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory):
    """(what was said, folder) of an evaluation of a run, without an output_dir."""
    home = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(pretrained, home / "run")
    recipe = written(home / "recipe.yaml", EVALUATE, tinted_images)
    said = good(commands.run("mpp.evaluate", recipe, f"encoder={home / 'run'}", "linear_probe.grid=[0.001,0.01,0.1]"))
    return said.text, home / "run" / "evaluation" / tinted_images.name


def data(folder: Path, place: tuple[int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Train features, train labels, test features, test labels."""
    splits = [features_on_disk(folder / "features", rows) for rows in (TRAIN, TEST)]
    return tuple(part[name].numpy() for part in splits for name in (f"block {place[0]}, {place[1]}", "labels"))  # type: ignore[return-value]


def few_shot(given: Any) -> dict[str, Any]:
    return {
        str(shots): {"mean": score.mean, "std": score.std, "per_seed": list(score.per_seed)}
        for shots, score in mpp.few_shot(*given, shots=(1, 5), seeds=(0, 1)).items()
    }


def neighbours(given: Any, k: int) -> float:
    """scikit-learn's vote, on float64."""
    train, labels, test, wanted = given
    vote = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    return float((vote.fit(train.astype(np.float64), labels).predict(test.astype(np.float64)) == wanted).mean())


def held_out(given: Any) -> Any:
    """Train features, divided by the dev split of the recipe."""
    train, labels, _, _ = given
    fitted, dev = dev_split(labels, 0.2, 0)
    return train[fitted], labels[fitted], train[dev], labels[dev]


def test_the_results_are_those_of_the_features_on_disk(evaluated: tuple[str, Path]):
    found = results(evaluated[1])
    assert (found["train_images"], found["test_images"], found["classes"]) == (TRAIN, TEST, 3)
    for which in ("default", "headline"):
        few, knn, probe = (found["scores"][name][which] for name in ("few_shot", "knn", "linear_probe"))
        assert few["shots"] == few_shot(data(evaluated[1], (few["block"], few["pool"])))
        assert few["accuracy"] == pytest.approx(np.mean([few["shots"][count]["mean"] for count in "15"]), abs=1e-12)
        given = data(evaluated[1], (knn["block"], knn["pool"]))
        assert knn["k"] == {"5": neighbours(given, 5), "10": neighbours(given, 10)}
        assert knn["accuracy"] == knn["k"]["5"], "the first is the headline"
        train, labels, test, wanted = data(evaluated[1], (probe["block"], probe["pool"]))
        scaler = StandardScaler().fit(train.astype(np.float64))
        reference = LogisticRegression(C=probe["c"], max_iter=5000, tol=1e-9)
        reference.fit(scaler.transform(train.astype(np.float64)), labels)
        assert probe["accuracy"] == (reference.predict(scaler.transform(test.astype(np.float64))) == wanted).mean()
        assert probe["dev"][f"{probe['c']:g}"] == max(probe["dev"].values())
        assert set(probe["dev"]) == {"0.001", "0.01", "0.1"}
    default = {(score["default"]["block"], score["default"]["pool"]) for score in found["scores"].values()}
    assert default == {(2, "avg")}


def test_there_is_something_to_learn_so_that_the_numbers_mean_something(evaluated: tuple[str, Path]):
    shots = results(evaluated[1])["scores"]["few_shot"]["default"]["shots"]
    assert 1 / 3 + 0.1 < shots["5"]["mean"] < 1.0


def test_the_place_is_the_best_one_on_the_dev_split_of_train(evaluated: tuple[str, Path]):
    found = results(evaluated[1])["scores"]
    by_hand = {
        "few_shot": lambda given: np.mean([score["mean"] for score in few_shot(given).values()]),
        "knn": lambda given: neighbours(given, 5),
    }
    for name, score in by_hand.items():
        looked = found[name]["by_depth"]
        assert [(at["block"], at["pool"]) for at in looked] == LAYERS
        for at in looked:
            expected = score(held_out(data(evaluated[1], (at["block"], at["pool"]))))
            assert at["accuracy"] == pytest.approx(expected, abs=1e-12)
        best = max(at["accuracy"] for at in looked)
        chosen = found[name]["headline"]
        [at] = [at for at in looked if (at["block"], at["pool"]) == (chosen["block"], chosen["pool"])]
        assert at["accuracy"] == best


def test_the_linear_probe_chooses_its_own_layer_by_scikit_learn_s_fits_on_the_dev_split(evaluated: tuple[str, Path]):
    found = results(evaluated[1])["scores"]["linear_probe"]
    assert [(at["block"], at["pool"]) for at in found["by_depth"]] == LAYERS
    for at in found["by_depth"]:
        train, labels, dev, wanted = held_out(data(evaluated[1], (at["block"], at["pool"])))
        scaler = StandardScaler().fit(train.astype(np.float64))
        reference = LogisticRegression(C=0.01, max_iter=5000, tol=1e-9)
        reference.fit(scaler.transform(train.astype(np.float64)), labels)
        assert at["accuracy"] == (reference.predict(scaler.transform(dev.astype(np.float64))) == wanted).mean()
    best = max(found["by_depth"], key=lambda at: (at["accuracy"], at["block"]))
    assert [found["headline"][key] for key in ("block", "pool")] == [best["block"], best["pool"]]


def test_the_rows_that_choose_c_follow_the_seed_of_the_labels(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    grid = [1e-4, 1e-3, 1e-2, 0.1, 1.0]
    settings = (f"encoder={pretrained}", "features.blocks=last", "features.pools=[token]", "encoder.pool=token",
                "few_shot=null", "knn=null",
                f"linear_probe.grid={grid}")  # fmt: skip
    seen = []
    for seed in (0, 3):
        good(evaluate(*settings, f"labels.seed={seed}"))
        probe = results(tmp_path / "out")["scores"]["linear_probe"]["default"]
        train, labels, _, _ = data(tmp_path / "out", (probe["block"], probe["pool"]))
        fitted, held = dev_split(labels, 0.1, seed)
        scaler = StandardScaler().fit(train[fitted].astype(np.float64))
        rows = scaler.transform(train.astype(np.float64))
        for c in grid:
            reference = LogisticRegression(C=c, max_iter=5000, tol=1e-9).fit(rows[fitted], labels[fitted])
            assert probe["dev"][f"{c:g}"] == (reference.predict(rows[held]) == labels[held]).mean()
        seen.append(probe["dev"])
    assert seen[0] != seen[1]


def test_test_labels_decide_nothing_but_the_score(
    evaluated: tuple[str, Path], evaluate: Evaluate, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tinted_images / "train.parquet", other)
    write_parquet(other / "test.parquet", tinted(TEST, 1), [(row + row // 3) % 3 for row in range(TEST)])
    good(evaluate(f"encoder={pretrained}", f"data.source={other}", "linear_probe.grid=[0.001,0.01,0.1]"))
    now, then = results(tmp_path / "out")["scores"], results(evaluated[1])["scores"]
    for name, score in now.items():
        assert score["by_depth"] == then[name]["by_depth"]
        for which in ("default", "headline"):
            at, before = score[which], then[name][which]
            assert [at[key] for key in ("block", "pool")] == [before[key] for key in ("block", "pool")]
            assert at["accuracy"] != before["accuracy"]
    for key in ("c", "dev"):
        assert now["linear_probe"]["headline"][key] == then["linear_probe"]["headline"][key]


def test_results_go_into_the_run_and_are_shown(evaluated: tuple[str, Path]):
    text, folder = evaluated
    assert str(folder / "results.json") in text
    assert mpp.load_recipe(folder / "recipe.yaml", command="evaluate").encoder.source
    found = results(folder)["scores"]
    for count in "15":
        score = found["few_shot"]["default"]["shots"][count]
        row = next(line for line in text.splitlines() if line.strip().startswith(f"{count} a class"))
        assert f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f}" in row
    assert f"{100 * found['knn']['headline']['k']['10']:.1f}" in text


def table(text: str) -> list[str]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if "chosen on dev" in line)
    return lines[start : next(i for i in range(start, len(lines)) if not lines[i])]


def test_the_table_has_at_most_80_columns(evaluate: Evaluate, pretrained: Path):
    said = good(evaluate(f"encoder={pretrained}", "linear_probe.grid=[1e-4]", "few_shot.shots=[1]", "knn=null")).text
    assert len(table(said)) == 7
    assert max(map(len, table(said))) <= 80, said


def test_a_part_of_the_labels_is_the_stratified_part(
    evaluate: Evaluate, evaluated: tuple[str, Path], pretrained: Path, tmp_path: Path
):
    good(evaluate(f"encoder={pretrained}", "labels.fraction=0.4", "labels.seed=3"))
    assert results(tmp_path / "out")["train_images"] == 36
    part = features_on_disk(tmp_path / "out" / "features", 36)
    rows = fraction_rows(np.arange(TRAIN) % 3, 0.4, 3)
    assert part["labels"].tolist() == (rows % 3).tolist()
    assert torch.bincount(part["labels"]).tolist() == [12, 12, 12]
    whole = features_on_disk(evaluated[1] / "features", TRAIN)
    assert torch.allclose(part["block 2, avg"], whole["block 2, avg"][rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["raw_pixels", "patch_colors"])
def test_the_controls_go_through_the_same_command(evaluate: Evaluate, tmp_path: Path, name: str):
    said = good(evaluate(f"encoder={name}", "linear_probe.grid=[0.01]"))
    found = results(tmp_path / "out")
    assert found["encoder"] == name
    splits = [features_on_disk(tmp_path / "out" / "features", rows) for rows in (TRAIN, TEST)]
    width = {"raw_pixels": 3 * 16 * 16, "patch_colors": 3 * 4 * 4}[name]
    assert splits[0]["block 0, avg"].shape == (TRAIN, width)
    given = [splits[0]["block 0, avg"], splits[0]["labels"], splits[1]["block 0, avg"], splits[1]["labels"]]
    for score in found["scores"].values():
        assert score["headline"] == score["default"]
        assert (score["default"]["block"], score["default"]["pool"]) == (0, "avg")
    assert found["scores"]["few_shot"]["default"]["shots"] == few_shot(given)
    images = [Image.open(io.BytesIO(encoded)) for _, encoded in tinted(TRAIN, 0)]
    in_python = mpp.features(name, images, image_size=SIZE, patch_size=PATCH if name == "patch_colors" else None)
    assert np.array_equal(in_python, given[0].numpy())
    mean = given[0].double().mean(0)
    centred = [(given[0] - mean).numpy(), given[1].numpy(), (given[2] - mean).numpy(), given[3].numpy()]
    knn = found["scores"]["knn"]["default"]["k"]
    assert knn == {"5": neighbours(centred, 5), "10": neighbours(centred, 10)}
    assert knn != {str(k): neighbours([part.numpy() for part in given], k) for k in (5, 10)}, "which tells them apart"
    assert max(map(len, table(said.text))) <= 80


def test_an_exported_folder_is_worth_what_its_run_is(
    commands: ForkServer, evaluated: tuple[str, Path], pretrained: Path, tinted_images: Path, tmp_path: Path
):
    shutil.copytree(pretrained / "encoder", tmp_path / "elsewhere")
    recipe = written(tmp_path / "recipe.yaml", EVALUATE, tinted_images)
    good(commands.run("mpp.evaluate", recipe, f"encoder={tmp_path / 'elsewhere'}"))
    found, before = results(tmp_path / "elsewhere" / "evaluation" / tinted_images.name), results(evaluated[1])
    for name in ("few_shot", "knn"):
        assert found["scores"][name] == before["scores"][name]


def test_random_weights_of_timm_s_architecture_depend_on_the_seed(
    commands: ForkServer, tinted_images: Path, tmp_path: Path
):
    """Without an output_dir the results go to runs/evaluation, under the encoder's name."""
    recipe = written(tmp_path / "recipe.yaml", EVALUATE, tinted_images)
    settings = ["encoder=timm:test_vit", "encoder.pretrained=false", "data.image_size=32", "features.blocks=last"]
    seen = []
    for seed, name in ((0, "timm_test_vit-random"), (1, "timm_test_vit-random-seed-1")):
        good(commands.run("mpp.evaluate", recipe, *settings, f"seed={seed}", cwd=tmp_path))
        folder = tmp_path / "runs" / "evaluation" / name / tinted_images.name
        assert results(folder)["encoder"] == "timm:test_vit, random weights"
        seen.append({path.name for path in (folder / "features").iterdir()})
    assert len(seen[1] - seen[0]) == 2


def test_scoring_that_was_cut_off_goes_on_with_what_is_left(
    commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    recipe = written(tmp_path / "recipe.yaml", EVALUATE, tinted_images)
    settings = [f"encoder={pretrained}", "linear_probe.grid=[0.001,0.01,0.1,1]"]
    good(commands.run("mpp.evaluate", recipe, f"output_dir={tmp_path / 'straight'}", *settings))
    assert not (tmp_path / "straight" / "scores").exists()
    command = commands.start("mpp.evaluate", recipe, f"output_dir={tmp_path / 'cut'}", *settings)
    while len(list((tmp_path / "cut" / "scores").glob("*.json"))) < 3:
        assert command.alive, command.text
        time.sleep(0.001)
    command.kill(signal.SIGKILL)
    command.wait(60)
    assert not (tmp_path / "cut" / "results.json").exists()
    shutil.copytree(tmp_path / "cut", tmp_path / "touched")
    for piece in (tmp_path / "touched" / "scores").glob("*.json"):  # what is there is taken for what it says
        piece.write_text(piece.read_text().replace('"accuracy": ', '"accuracy": 7'))
    for name in ("cut", "touched"):
        good(commands.run("mpp.evaluate", recipe, f"output_dir={tmp_path / name}", *settings))
    straight = results(tmp_path / "straight")["scores"]
    assert results(tmp_path / "cut")["scores"] == straight
    assert results(tmp_path / "touched")["scores"] != straight


def test_a_random_start_and_a_part_of_the_labels_leave_the_results_of_the_run_alone(
    commands: ForkServer, evaluated: tuple[str, Path], tinted_images: Path, tmp_path: Path
):
    run, recipe = evaluated[1].parents[1], written(tmp_path / "recipe.yaml", EVALUATE, tinted_images)
    before = (evaluated[1] / "results.json").read_bytes()
    small = ("features.blocks=last", "features.pools=[token]", "encoder.pool=token", "few_shot=null")
    good(commands.run("mpp.evaluate", recipe, f"encoder={run}", "encoder.pretrained=false", *small, cwd=tmp_path))
    random = results(tmp_path / "runs" / "evaluation" / f"{run.name}-random" / tinted_images.name)
    other = ("encoder.pretrained=false", "seed=3", "labels.fraction=0.5", "labels.seed=4")
    good(commands.run("mpp.evaluate", recipe, f"encoder={run}", *other, *small, cwd=tmp_path))
    apart = tmp_path / "runs" / "evaluation" / f"{run.name}-random-seed-3"
    assert (
        results(apart / f"{tinted_images.name}-0.5-of-labels-seed-4")["features_of"]["weights"]
        != random["features_of"]["weights"]
    )
    good(commands.run("mpp.evaluate", recipe, f"encoder={run}", "labels.fraction=0.5", *small, cwd=tmp_path))
    assert (evaluated[1] / "results.json").read_bytes() == before
    part = results(run / "evaluation" / f"{tinted_images.name}-0.5-of-labels")
    assert random["features_of"]["weights"] != part["features_of"]["weights"]
    assert (random["train_images"], part["train_images"]) == (TRAIN, TRAIN // 3 // 2 * 3)


@pytest.mark.parametrize("by_depth", [("knn", "few_shot"), ("few_shot", "knn")])
def test_the_last_evaluator_by_depth_decides_for_those_that_do_not_choose(by_depth: tuple[str, ...], tmp_path: Path):
    rng = np.random.default_rng(0)
    crossed, apart = FeatureLayer(1, "avg"), FeatureLayer(2, "avg")

    def features(rows: int) -> Features:
        """An exclusive or, which neighbours tell apart and no plane does; and the other way round a slight shift."""
        corners = rng.integers(0, 2, (rows, 2))
        labels = corners.sum(1) % 2
        shifted = rng.normal(size=(rows, 30)) + 0.8 * labels[:, None] * (np.arange(30) < 3)
        values = {crossed: corners + 0.1 * rng.normal(size=(rows, 2)) - 0.5, apart: shifted}
        floats = {place: torch.from_numpy(value).float() for place, value in values.items()}
        return Features(floats, torch.from_numpy(labels), 0)

    train, test = features(400), features(100)
    asked = (FewShotSettings(shots=(100,), seeds=(0,)), NeighbourSettings(k=(5,)), ProbeSettings(grid=(0.1,)))
    dev = dev_split(train.labels.numpy(), 0.2, 0)
    found, _ = scores(asked, train, test, apart, dev=dev, by_depth=by_depth, options=Options(), pieces=tmp_path)
    chosen = {name: entry["headline"]["block"] for name, entry in found.items()}
    assert (chosen["knn"], chosen["few_shot"]) == (1, 2)
    assert chosen["linear_probe"] == chosen[by_depth[-1]]


def test_another_image_size_than_the_encoder_s_own_is_told(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    small = ("features.blocks=last", "features.pools=[token]", "encoder.pool=token", "few_shot=null")
    said = good(evaluate(f"encoder={pretrained}", "data.image_size=32", *small)).text
    assert f"32 px (made for {SIZE})" in said
    found = results(tmp_path / "out")
    assert (found["image_size"], found["made_for"]) == (32, SIZE)


def test_the_probe_by_depth_is_a_curve_and_says_when_its_grid_ends(
    evaluate: Evaluate, pretrained: Path, tmp_path: Path
):
    said = good(evaluate(f"encoder={pretrained}", "by_depth=[linear_probe]", "linear_probe.grid=[1e-6,1e-5]")).text
    found = results(tmp_path / "out")["scores"]
    curve = found["linear_probe"]["by_depth"]
    assert {(at["block"], at["pool"]) for at in curve} == set(LAYERS)
    best = max(curve, key=lambda at: (at["accuracy"], at["block"]))
    chosen = found["linear_probe"]["headline"]
    assert (chosen["block"], chosen["pool"]) == (best["block"], best["pool"])
    for name in ("few_shot", "knn"):
        assert (found[name]["headline"]["block"], found[name]["headline"]["pool"]) == (chosen["block"], chosen["pool"])
    assert "C of linear_probe.grid: widen it" in said


# What is refused


def test_a_class_with_fewer_images_than_shots_is_named(evaluate: Evaluate, pretrained: Path):
    refused(evaluate(f"encoder={pretrained}", "few_shot.shots=[1,40]", "labels.dev=0"), "class 0 has 30 images", "40")


@pytest.mark.parametrize(
    "by_depth",
    ["[]", "[knn]"],
)
def test_a_class_with_enough_images_is_not_refused_for_the_dev_split_s_sake(
    evaluate: Evaluate, pretrained: Path, by_depth: str
):
    good(evaluate(f"encoder={pretrained}", "few_shot.shots=[30]", f"by_depth={by_depth}"))


@pytest.mark.parametrize("control", ["raw_pixels", "run"])
def test_more_neighbours_than_images_are_refused(evaluate: Evaluate, pretrained: Path, control: str):
    encoder = pretrained if control == "run" else control
    refused(evaluate(f"encoder={encoder}", "knn.k=[5,91]", "labels.dev=0"), "knn.k", "90 training images", "91")


def labelled(folder: Path, train: list[int], test: list[int], classes: list[str] | None) -> Path:
    """A data set with these labels; without names of classes they are plain integers."""
    import datasets

    folder.mkdir()
    for split, labels in (("train", train), ("test", test)):
        images = [{"bytes": content, "path": name} for name, content in tinted(len(labels), 5)]
        kind = datasets.ClassLabel(names=classes) if classes else datasets.Value("int64")
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_a_single_class_is_refused(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    source = labelled(tmp_path / "one", [0] * 20, [0] * 6, ["only"])
    refused(evaluate(f"encoder={pretrained}", f"data.source={source}"), "one class")


def test_test_labels_that_train_does_not_have_are_refused(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    source = labelled(tmp_path / "beyond", [0, 1] * 10, [0, 1, 2], None)
    message = evaluate(f"encoder={pretrained}", f"data.source={source}", "data.label_column=label")
    refused(message, "1 of 3 labels", "outside the 2 classes", "row 2")


def test_negative_labels_are_refused(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    source = labelled(tmp_path / "negative", [0, 1, -1, 1] * 5, [0, 1], None)
    message = evaluate(f"encoder={pretrained}", f"data.source={source}", "data.label_column=label")
    refused(message, "5 of 20 labels", "outside the 2 classes", "row 2")


def test_unlabelled_data_is_refused(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "plain" / f"{split}.parquet", tinted(12, 3))
    refused(evaluate(f"encoder={pretrained}", f"data.source={tmp_path / 'plain'}"), "labels are needed")


def test_an_encoder_that_does_not_fit_the_image_size_is_refused(evaluate: Evaluate, pretrained: Path):
    words = ("image_size 18 is not a multiple of the patch size 4", "16 or 20")
    refused(evaluate(f"encoder={pretrained}", "data.image_size=18"), *words)
    refused(evaluate("encoder=patch_colors", "data.image_size=18"), words[0])


def test_weights_that_are_not_finite_are_refused_and_leave_no_results(
    evaluate: Evaluate, pretrained: Path, tmp_path: Path
):
    shutil.copytree(pretrained / "encoder", tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(path)
    tensors["norm.weight"][3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    refused(evaluate(f"encoder={tmp_path / 'broken'}"), "not finite", "broken weights")
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("encoder", "word"),
    [
        ("./runs/nowhere", "runs/nowhere"),
        ("raw_pixel", "raw_pixel"),
        ("timm:vit_tinny_patch16_224", "vit_tiny_patch16_224"),
        ("timm:test_vit.no_such_tag", "no_such_tag"),
    ],
)
def test_an_unknown_encoder_is_named(evaluate: Evaluate, encoder: str, word: str):
    refused(evaluate(f"encoder={encoder}"), word)


def test_a_block_that_the_encoder_does_not_have_is_refused(evaluate: Evaluate, pretrained: Path):
    refused(evaluate(f"encoder={pretrained}", "features.blocks=[1,9]"), "features.blocks 9", "has 2 blocks")


def test_damaged_images_are_counted_and_a_data_set_of_them_is_refused(
    evaluate: Evaluate, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    images = tinted(TRAIN, 0)
    images[7] = (images[7][0], images[7][1][:90])
    for name, train in (("one", images), ("all", [(name, content[:90]) for name, content in images])):
        write_parquet(tmp_path / name / "train.parquet", train, [row % 3 for row in range(TRAIN)])
        shutil.copy(tinted_images / "test.parquet", tmp_path / name)
    said = good(evaluate(f"encoder={pretrained}", f"data.source={tmp_path / 'one'}")).text
    assert re.search(r"training split: 1 images? cannot be decoded", said)
    refused(evaluate(f"encoder={pretrained}", f"data.source={tmp_path / 'all'}"), "cannot be decoded", code=1)


def test_no_more_test_images_may_be_damaged_than_the_recipe_says(
    evaluate: Evaluate, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    """Neighbours stand in for them: with many of these a score is another one's."""
    (tmp_path / "some").mkdir()
    shutil.copy(tinted_images / "train.parquet", tmp_path / "some")
    test = [(name, content[:90] if row % 3 == 0 else content) for row, (name, content) in enumerate(tinted(TEST, 1))]
    write_parquet(tmp_path / "some" / "test.parquet", test, [row % 3 for row in range(TEST)])
    settings = [f"encoder={pretrained}", f"data.source={tmp_path / 'some'}"]
    damaged = -(-TEST // 3)
    refused(evaluate(*settings), f"{damaged} of {TEST} images", "data.max_bad_share", code=1)
    good(evaluate(*settings, "data.max_bad_share=0.5"))
    assert results(tmp_path / "out")["damaged"] == {"train": 0, "test": damaged}


# Controls beside the scores


def test_controls_are_scored_as_by_a_command_of_their_own(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    said = good(evaluate(f"encoder={pretrained}", "controls=true", "linear_probe.grid=[0.01,0.1,100]")).text
    found = results(tmp_path / "out")
    assert set(found["controls"]) == {"raw_pixels", "patch_colors"}
    for name, entry in found["controls"].items():
        shutil.rmtree(tmp_path / "out")
        good(evaluate(f"encoder={name}", "encoder.patch_size=4", "linear_probe.grid=[0.01,0.1,100]", "controls=true"))
        alone = results(tmp_path / "out")
        assert alone["controls"] == {}, "a control has none beside it"
        assert entry == {each: {"default": score["default"]} for each, score in alone["scores"].items()}
    lines = table(said)
    assert lines[0].split()[-3:] == ["pixels", "colours", "chance"]
    row = next(line for line in lines if line.strip().startswith("5 a class"))
    score = found["controls"]["patch_colors"]["few_shot"]["default"]["shots"]["5"]
    assert row.split()[-4:] == [f"{100 * score['mean']:.1f}", "±", f"{100 * score['std']:.1f}", "33.3"]
    assert max(map(len, said.splitlines())) <= 80 + len(str(tmp_path)), said
    assert "of train, 3 classes" in said
    assert f"{TEST} test images (test)" in said


def test_controls_that_were_cut_off_resume(evaluate: Evaluate, pretrained: Path, tmp_path: Path):
    good(evaluate(f"encoder={pretrained}", "controls=true"))
    straight = results(tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "features").iterdir()}
    assert len(kept) == 6, "two splits of an encoder and two controls"
    good(evaluate(f"encoder={pretrained}", "controls=true"))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "features").iterdir()} == kept
    assert results(tmp_path / "out")["controls"] == straight["controls"]


def test_a_probe_without_its_package_is_refused_before_any_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train.parquet").write_text("nothing that could be read")
    text = EVALUATE.replace("linear_probe: null", "linear_probe: {grid: [1.0]}")
    recipe = written(tmp_path / "recipe.yaml", text, tmp_path / "images")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert main([str(recipe), f"output_dir={tmp_path / 'out'}"]) == 1
    captured = capsys.readouterr()
    assert captured.err == 'error: the linear probe needs SciPy: pip install "masked-patch-prediction[study]"\n'
    assert not (tmp_path / "out").exists()


def test_the_page_s_table_of_labels_works_as_written_at_the_encoder_s_own_size(
    commands: ForkServer, pretrained: Path, tmp_path: Path
):
    """The header of the CSV and the command are those of docs/pages/evaluating.md; there are 300 photographs."""
    page = (Path(mpp.__file__).parents[1] / "docs/pages/evaluating.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"^mpp evaluate (few_shot .*data.source=labels.csv.*)$", page, re.MULTILINE)
    rows = []
    for number, (_, image) in enumerate(tinted(300, 5)):
        path = Path("photos") / f"2024-{number % 4}" / f"{number}.png"
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(image)
        rows.append(f"{path.relative_to('photos')},{('cat', 'dog', 'eel')[number % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join([table.splitlines()[0], *rows]))
    (tmp_path / "runs").mkdir()
    shutil.copytree(pretrained, tmp_path / "runs" / "mine")
    said = good(commands.run("mpp.evaluate", *command.split(), "linear_probe.grid=[0.01]", cwd=tmp_path)).text
    assert "3 classes in labels.csv: cat, dog, eel" in said
    assert f"{SIZE} px, patch" in said
    assert "warning: images of" not in said
    assert "± standard error (30 test images):" in " ".join(said.split())
    assert "Verdict: the encoder is " in said
    found = results(tmp_path / "runs" / "mine" / "evaluation" / "labels.csv")
    assert found["image_size"] == found["made_for"] == SIZE
    changes = ("encoder=runs/mine", "data.source=photos", "data.image_size=32", "linear_probe.grid=[0.01]")
    folder = good(commands.run("mpp.evaluate", "few_shot", *changes, cwd=tmp_path)).text
    assert "4 folders taken as classes: 2024-0, 2024-1, 2024-2, 2024-3" in folder
    assert "warning: images of 32 px go into an encoder that was trained at 16 px" in folder
