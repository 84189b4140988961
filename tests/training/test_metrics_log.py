"""The printed lines of the metrics log."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpp.objective.masked_patch import MaskedPatchPrediction
from mpp.training.metrics_log import Journal

VALIDATED = {"validation/loss_mask": 3.002, "validation/accuracy": 0.147, "validation/histogram": 4.267,
             "validation/neighbours": 3.621, "evaluation/knn_5_token": 0.213}  # fmt: skip


def printed(values: dict[str, Any], path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    accelerator = SimpleNamespace(is_main_process=True, trackers=[])
    journal = Journal(path / "m.jsonl", cast(Any, accelerator), cast(Any, MaskedPatchPrediction), steps=675, step=0)
    journal.write(507, 64, values)
    return capsys.readouterr().out.splitlines()


def test_a_step_that_was_validated_but_not_logged_has_no_line_of_its_own(tmp_path, capsys):
    lines = printed(VALIDATED, tmp_path, capsys)
    assert lines[0].startswith("step 507/675  held out: masked 3.002  acc 14.7%")
    assert " ".join(" ".join(lines).split()).endswith("(neighbours 3.621) features: knn_5_token 21.3%")
    assert max(map(len, lines)) <= 80
    with_loss = printed({"loss": 3.5, "loss_mask": 3.4, **VALIDATED}, tmp_path, capsys)
    assert with_loss[0] == "step 507/675  loss 3.500  masked 3.400"
    assert with_loss[1].startswith("  held out: masked 3.002")


def test_a_step_with_a_picture_alone_prints_nothing(tmp_path, capsys):
    assert printed({"reconstructions": "reconstructions/step-000000507.png"}, tmp_path, capsys) == []
