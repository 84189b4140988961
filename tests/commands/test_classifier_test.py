"""What the test of a fine-tuning says, from stored predictions that are wrong in a known way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mpp.commands.classifier_test import ClassResult, classifier_test
from mpp.evaluation.predictions import FILE, write_predictions

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2], dtype=torch.uint8)


def results(accuracy: float, images: int, **others: Any) -> dict[str, Any]:
    return {"test": {"accuracy": accuracy, "loss": 1.25, "images": images}, **others}


def test_each_class_has_its_own_images_and_the_matrix_has_the_truth_in_rows(tmp_path: Path):
    write_predictions(tmp_path / FILE, {"finetune/1": PREDICTED}, LABELS)
    found = classifier_test(tmp_path, results(5 / 8, 8, class_names=["oak", "elm", "fir"]))
    assert found is not None
    assert found.matrix is not None
    assert found.matrix.tolist() == [[3, 0, 1], [0, 0, 2], [0, 0, 2]]
    assert found.classes == [ClassResult("oak", 4, 3, 3), ClassResult("elm", 2, 0, 0), ClassResult("fir", 2, 2, 5)]
    assert [each.accuracy for each in found.classes] == [0.75, 0.0, 1.0]
    assert (found.chance, found.chance_loss) == (1 / 3, pytest.approx(math.log(3)))
    assert str(found) == (
        "Chance is 33.3% with 3 classes: the accuracy is not clearly above it. "
        "The test loss is 1.250 nats, and that of equal odds is 1.099."
    )


def test_a_run_of_an_earlier_version_shows_what_it_has(tmp_path: Path):
    assert classifier_test(tmp_path, results(0.5, 8)) is None
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "config.json").write_text('{"label_names": ["oak", "elm"]}')
    found = classifier_test(tmp_path, results(0.25, 4_000))
    assert found is not None
    assert (found.classes, found.chance) == ([], 0.5)
    assert "the accuracy is below it" in str(found)
