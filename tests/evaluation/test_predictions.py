"""The stored predictions: every accuracy can be computed again from them, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from mpp.evaluation.few_shot import shot_rows
from mpp.evaluation.predictions import LABELS, compact, correctness, key_of, read_predictions, write_predictions
from tests.support.downstream import (
    EVALUATE,
    FINETUNE,
    TEST,
    TRAIN,
    as_two,
    crops,
    good,
    results,
    written,
)
from tests.support.forkserver import ForkServer
from tests.support.looking import by_timm
from tests.support.runs import free_port

SHOTS, SEEDS, NEIGHBOURS = (1, 5), (0, 1), (5, 10)
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="module")
def evaluated(
    commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    home = tmp_path_factory.mktemp("predictions")
    recipe = written(home / "recipe.yaml", EVALUATE, tinted_images)
    changes = ("linear_probe.grid=[0.01,0.1]", "controls=true", f"output_dir={home / 'out'}")
    good(commands.run("mpp.evaluate", recipe, f"encoder={pretrained}", *changes))
    return home / "out"


def layers(found: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The name that predictions of each layer have, and the result there: one where the same layer was chosen."""
    default, chosen = found["default"], found.get("headline", found["default"])
    same = (default["block"], default["pool"]) == (chosen["block"], chosen["pool"])
    return {"default": ("default", default), "headline": ("default" if same else "chosen", chosen)}


def test_every_accuracy_of_an_evaluation_follows_from_its_predictions(evaluated: Path):
    found, stored = results(evaluated), load_file(evaluated / "predictions.safetensors")
    labels = stored.pop(LABELS)
    assert labels.tolist() == [row % 3 for row in range(TEST)], "in the order of the test split"
    used = set()

    def accuracies(key: str) -> list[float]:
        used.add(key)
        return [(row == labels).sum() / TEST for row in np.atleast_2d(stored[key])]

    everything = {"": found["scores"], **{f"{name}/": scores for name, scores in found["controls"].items()}}
    assert set(everything) == {"", "raw_pixels/", "patch_colors/"}
    for prefix, scores in everything.items():
        for name, entry in scores.items():
            for layer, score in layers(entry).values():
                for shots, drawn in score.get("shots", {}).items():
                    draws = accuracies(f"{prefix}few_shot/{shots}/{layer}")
                    assert draws == drawn["per_seed"]
                    assert np.mean(draws) == drawn["mean"]
                for k, accuracy in score.get("k", {}).items():
                    assert accuracies(f"{prefix}knn/{k}/{layer}") == [accuracy]
                if name == "linear_probe":
                    assert accuracies(f"{prefix}linear_probe/{layer}") == [score["accuracy"]]
    assert used == set(stored), "and nothing else is stored"
    assert {each.dtype for each in stored.values()} == {np.dtype(np.uint8)}
    assert (evaluated / "predictions.safetensors").stat().st_size < 8192


def features_of(folder: Path, place: str, rows: int) -> dict[str, Any]:
    """The features of the encoder; those of the controls lie beside them."""
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    [found] = [file for file in files if len(file[LABELS]) == rows and place in file]
    return found


def test_the_predictions_are_scikit_learn_s_for_every_single_image(evaluated: Path):
    found, stored = results(evaluated), load_file(evaluated / "predictions.safetensors")
    for name, entry in found["scores"].items():
        for layer, score in layers(entry).values():
            place = f"block {score['block']}, {score['pool']}"
            split = [features_of(evaluated / "features", place, rows) for rows in (TRAIN, TEST)]
            train, test = (part[place].astype(np.float64) for part in split)
            labels = split[0][LABELS]
            if name == "knn":
                for k in NEIGHBOURS:
                    vote = KNeighborsClassifier(
                        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
                    )
                    predicted = vote.fit(train, labels).predict(test)
                    assert predicted.tolist() == stored[f"knn/{k}/{layer}"].tolist()
            elif name == "linear_probe":
                scaler = StandardScaler().fit(train)
                probe = LogisticRegression(C=score["c"], max_iter=5000, tol=1e-9).fit(scaler.transform(train), labels)
                assert probe.predict(scaler.transform(test)).tolist() == stored[f"linear_probe/{layer}"].tolist()
            else:
                for shots, (row, seed) in [(s, each) for s in SHOTS for each in enumerate(SEEDS)]:
                    rows = shot_rows(labels, shots, seed).reshape(-1)
                    scaler = StandardScaler().fit(train[rows])
                    # With as many shots of each class the bias, which is not decayed there, changes no argmax.
                    ridge = RidgeClassifier(alpha=1024.0).fit(scaler.transform(train[rows]), labels[rows])
                    predicted = ridge.predict(scaler.transform(test))
                    assert predicted.tolist() == stored[f"few_shot/{shots}/{layer}"][row].tolist()


def test_fine_tuning_stores_what_its_classifier_predicts_in_one_process_and_in_two(
    commands: ForkServer, tinted_images: Path, tmp_path: Path
):
    """The test split is odd: one of two processes sees an image twice."""
    recipe = written(tmp_path / "recipe.yaml", FINETUNE, tinted_images, tmp_path / "run")
    changes = ("labels.fraction=0.5", "training.duration.steps=24")
    good(commands.run("mpp.finetune", recipe, *changes))
    two = (*changes, f"output_dir={tmp_path / 'two'}", "training.micro_batch_size=4")
    for command in as_two(commands, "mpp.finetune", free_port(), recipe, *two):
        good(command)
    pixels, labels = crops(tinted_images / "test.parquet")
    for run in (tmp_path / "run", tmp_path / "two"):
        stored = load_file(run / "predictions.safetensors")
        assert set(stored) == {LABELS, "finetune/0.5"}
        assert stored[LABELS].tolist() == labels
        assert stored["finetune/0.5"].tolist() == by_timm(run, pixels).argmax(1).tolist()
        assert len(set(stored["finetune/0.5"].tolist())) > 1, "a constant would be in any order"
        assert (stored["finetune/0.5"] == stored[LABELS]).sum() / TEST == results(run)["test"]["accuracy"]
    one, other = (load_file(tmp_path / name / "predictions.safetensors") for name in ("run", "two"))
    assert one["finetune/0.5"].tolist() == other["finetune/0.5"].tolist()


@pytest.mark.parametrize(("arguments", "name"), [
    (("few_shot", 25, "chosen"), "few_shot/25/chosen"), (("few_shot", 25.0, "default"), "few_shot/25/default"),
    (("linear_probe", None, "chosen"), "linear_probe/chosen"), (("finetune", 0.02), "finetune/0.02"),
    (("finetune", 1.0), "finetune/1"), (("knn", 20, "chosen"), "knn/20/chosen"),
])  # fmt: skip
def test_the_names_of_predictions(arguments: Any, name: str):
    assert key_of(*arguments) == name


@pytest.mark.parametrize(("classes", "kind"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int32)])
def test_the_smallest_type_that_holds_every_class_is_stored(tmp_path: Path, classes: int, kind: torch.dtype):
    labels, predicted = torch.arange(classes), torch.arange(classes).flip(0)
    write_predictions(tmp_path / "predictions.safetensors", {"finetune/1": compact(predicted, classes)}, labels)
    found = read_predictions(tmp_path / "predictions.safetensors")
    assert {each.dtype for each in found.values()} == {kind}
    assert found["finetune/1"].tolist() == predicted.tolist()
    assert found[LABELS].tolist() == labels.tolist()
    assert read_predictions(tmp_path / "nothing.safetensors") == {}


def test_correctness_is_the_share_of_draws_that_are_right():
    found = {
        LABELS: torch.tensor([0, 1, 2]),
        "few_shot/5/default": torch.tensor([[0, 1, 0], [0, 0, 0]]),
        "linear_probe/default": torch.tensor([0, 0, 2]),
        "linear_probe/chosen": torch.tensor([1, 1, 1]),
    }

    def of(key: str) -> list[float]:
        right = correctness(found, key)
        assert right is not None
        return right.tolist()

    assert of("few_shot/5/default") == of("few_shot/5/chosen") == [1.0, 0.5, 0.0]
    assert (of("linear_probe/default"), of("linear_probe/chosen")) == ([1, 0, 1], [0, 1, 0])
    assert correctness(found, "knn/20/chosen") is None
