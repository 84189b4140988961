"""An objective that lives in this file alone: it trains, resumes, logs, draws, is in the help, and is a study's arm.

`python -m tests.objective.test_toy_objective FOLDER` puts its settings into the union before any recipe is read, which
is all that it takes, and runs the commands.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pytest
import torch
import yaml
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from mpp.encoder.backbone import Backbone
from mpp.objective import settings
from mpp.objective.base import Objective, Sample
from mpp.objective.scores import Scores, total

STOP = "STOP_AT_SAMPLE"
"""In the environment: the sample number at which the toy sends SIGTERM to its own process."""


class Brightness(NamedTuple):
    loss: Tensor
    predicted: Tensor
    truth: Tensor


class BrightnessPrediction(Objective):
    """Predict how bright an image is from its pooled feature."""

    line: ClassVar[Mapping[str, str]] = {"loss": "loss {:.3f}", "off": "off by {:.3f}"}

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.width, 1)

    def forward(self, pixels: Tensor, samples: Tensor | None = None, labels: Tensor | None = None) -> Brightness:
        if self.training and samples is not None and int(os.environ.get(STOP, "-1")) in samples.tolist():
            os.kill(os.getpid(), signal.SIGTERM)
        truth = pixels.float().mean((1, 2, 3)) / 255
        predicted = self.head(self.encoder.pooled(self.encoder(pixels))).squeeze(-1).float()
        return Brightness((predicted - truth).square().mean(), predicted, truth)

    def scores(self, prediction: Brightness, pixels: Tensor) -> Scores:
        difference = prediction.predicted - prediction.truth
        return {"loss": total(difference.square()), "off": total(difference.abs())}

    def baselines(self, train: Sample, validation: Sample) -> dict[str, float]:
        seen, held = (torch.cat([p.float().mean((1, 2, 3)) / 255 for p, _ in s.batches]) for s in (train, validation))
        return {"mean": float((held - seen.mean()).square().mean())}

    def picture(self, pixels: Tensor, samples: Tensor) -> dict[str, Tensor]:
        grey = self.forward(pixels).predicted.clamp(0, 1)[:, None, None, None]
        return {"image": pixels.float() / 255, "brightness": grey.expand(-1, *pixels.shape[1:])}


class BrightnessSettings(settings.BaseObjectiveSettings):
    """How bright an image is, as a toy."""

    kind: Literal["brightness"] = "brightness"
    """Predict how bright each image is."""

    needs_patches: ClassVar[bool] = False

    @property
    def description(self) -> str:
        return "by telling how bright an image is."

    def build(self, encoder: Backbone, *, num_classes: int | None, seed: int) -> Objective:
        return BrightnessPrediction(encoder)


def run(module: str, *arguments: str) -> tuple[int, str]:
    """A command in this process: its exit code, and what it wrote."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = importlib.import_module(module).main(list(arguments))
    return code, out.getvalue()


def main(folder: Path) -> None:
    shipped = settings.MaskedPatchSettings | settings.SupervisedSettings | BrightnessSettings
    settings.ObjectiveSettings = Annotated[shipped, Field(discriminator="kind")]
    recipe = str(folder / "recipe.yaml")
    found: dict[str, Any] = {"help": run("mpp.pretrain", "--help")}
    found["whole"] = run("mpp.pretrain", recipe, f"output_dir={folder / 'whole'}")
    os.environ[STOP] = "70"
    found["stopped"] = run("mpp.pretrain", recipe, f"output_dir={folder / 'resumed'}")
    del os.environ[STOP]
    found["resumed"] = run("mpp.pretrain", recipe, f"output_dir={folder / 'resumed'}")
    found["push"] = run("mpp.push", str(folder / "whole"), "me/toy", "--dry-run", "--folder", str(folder / "pushed"))
    study = str(folder / "study.yaml")
    found["units"] = run("mpp.gap", study, "study.only=[random/seed-0, toy/seed-0]")  # in this very process
    found["study"] = run("mpp.gap", study)
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    recipe = {
        "command": "pretrain",
        "output_dir": "runs/toy",
        "data": {"source": str(tiny_data), "image_size": 16, "workers": 0},
        "encoder": {
            "name": "vit_tiny_patch16_224", "patch_size": 4,
            "arguments": {"embed_dim": 32, "depth": 1, "num_heads": 2, "drop_path_rate": 0.1},
        },
        "objective": {"kind": "brightness"},
        "optimizer": {"lr": 1e-3},
        "training": {"batch_size": 16, "duration": {"steps": 8}, "precision": "float32"},
        "validation": {"images": 16, "baseline_images": 32},
        "checkpoint": {"every": {"steps": 3}},
        "journal": {"every": {"steps": 1}},
        "reconstructions": {"images": 2},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    data = {"source": str(tiny_data), "image_size": 16, "workers": 0}
    study = {
        "command": "gap",
        "output_dir": str(folder / "study"),
        "study": {
            "arms": {"random": None, "toy": {"title": "brightness", "objective": {"kind": "brightness"}}},
            "seeds": [0],
            "controls": False,
        },
        "upstream": {**data, "split": "train[:50%]"},
        "downstream": {**data, "split": "train[50%:]"},
        "encoder": recipe["encoder"] | {"arguments": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
        "pretraining": {name: recipe[name] for name in ("optimizer", "training", "validation", "checkpoint")},
        "evaluation": {"few_shot": None, "linear_probe": None, "knn": {"k": [5]}},
        "finetuning": {"fractions": [], "training": recipe["training"]},
    }
    (folder / "study.yaml").write_text(json.dumps(study))
    subprocess.run([sys.executable, "-m", __name__, str(folder)], check=True)
    return folder


def test_it_trains_logs_its_scores_and_draws(toy: Path):
    found = json.loads((toy / "found.json").read_text())
    assert found["whole"][0] == 0, found["whole"][1]
    lines = [json.loads(line) for line in (toy / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert all({"loss", "off", "lr"} <= set(line) for line in lines)
    assert {"validation/loss", "validation/off", "validation/mean"} <= set(lines[-1])
    assert (toy / "whole" / lines[-1]["reconstructions"]).stat().st_size > 500
    assert "off by 0." in found["whole"][1]


def test_it_resumes_bit_for_bit(toy: Path):
    found = json.loads((toy / "found.json").read_text())
    assert [found[name][0] for name in ("stopped", "resumed")] == [143, 0], found["stopped"][1]
    whole, resumed = (load_file(toy / run / "encoder" / "model.safetensors") for run in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_it_is_published_with_a_card_in_its_own_words(toy: Path):
    code, text = json.loads((toy / "found.json").read_text())["push"]
    assert code == 0, text
    card = (toy / "pushed" / "README.md").read_text()
    assert "pre-trained\nby telling how bright an image is.\n" in card
    assert "does not train the class token" not in card


def test_it_is_in_the_help(toy: Path):
    code, text = json.loads((toy / "found.json").read_text())["help"]
    assert code == 0
    assert "brightness" in text


def test_it_is_an_arm_of_a_study(toy: Path):
    from mpp.study.results import read, select  # late: recipes are read only when the toy is in the union

    found = json.loads((toy / "found.json").read_text())
    assert [found[name][0] for name in ("units", "study")] == [0, 0], found["units"][1] + found["study"][1]
    rows = read(json.loads((toy / "study" / "results.json").read_text())["rows"])
    accuracies = {row.arm: row.value for row in select(rows, evaluator="knn", metric="accuracy")}
    assert set(accuracies) == {"random", "toy"}
    assert "brightness" in (toy / "study" / "report.html").read_text()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
