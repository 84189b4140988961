"""An evaluation and predictions from Python: `mpp.scores("few_shot", ["encoder=runs/mine", …])`, `mpp.classify`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from mpp.commands.evaluate import evaluate, output_folder
from mpp.commands.score_table import score_table
from mpp.commands.score_verdict import filled, score_of, score_verdict
from mpp.commands.train import loaded_recipe
from mpp.data.inputs import CentreCrops, Images
from mpp.data.settings import DataSettings
from mpp.encoder.classifier import Classifier
from mpp.recipe import EvaluateRecipe
from mpp.settings import Settings


class Scores(NamedTuple):
    """What an evaluation gives; printed, it is the table and the verdict of `mpp evaluate`."""

    results: dict[str, Any]
    """What `results.json` holds: every score, by evaluator and layer, with those of the controls."""
    folder: Path
    """Where `results.json` and the features lie."""

    @property
    def accuracy(self) -> dict[str, float]:
        """By evaluator the accuracy at the layer that the dev split chose, in [0, 1].

        Of few-shot that with most shots, of the nearest neighbours that of the first k.
        """
        return {name: score_of(entry["headline"])[0] for name, entry in self.results["scores"].items()}

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.results["classes"]

    def __repr__(self) -> str:
        return f"{score_table(self.results)}\n\n{filled(score_verdict(self.results))}\n\nresults: {self.folder}"


def scores(recipe: str | Path | Settings = "few_shot", overrides: Iterable[str] = ()) -> Scores:
    """Evaluate the frozen features of an encoder on labelled images, as the command `mpp evaluate` does.

    Args:
        recipe: a file, the name of a recipe that ships with the package, or what `load_recipe` gives.
        overrides: settings as on the command line: `["encoder=runs/mine", "data.source=labelled"]`.

    Raises:
        ValueError: for what the user can correct, or a recipe of another command.
        RuntimeError: if the evaluation cannot continue.
    """
    loaded = loaded_recipe(recipe, list(overrides))
    if not isinstance(loaded, EvaluateRecipe):
        raise ValueError(f"this recipe is for mpp {loaded.command}, and not for mpp evaluate")
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run here may have had another precision
    evaluate(loaded)
    folder = output_folder(loaded)
    return Scores(json.loads((folder / "results.json").read_text(encoding="utf-8")), folder)


class Classes(NamedTuple):
    """The classes of images."""

    probabilities: np.ndarray[Any, np.dtype[np.float32]]
    """float32 `(n, classes)`, in the order of the images."""
    names: list[str]
    """Of the classes, in the order of the columns."""

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each image."""
        return [self.names[column] for column in self.probabilities.argmax(1)]


def classify(
    classifier: str | Path, images: Images, *, batch_size: int = 64, device: str | torch.device | None = None
) -> Classes:
    """The class probabilities of images, as the command `mpp predict` writes them.

    Args:
        classifier: a run of `mpp finetune`, its `classifier` folder, or `USER/NAME` on the Hub.
        images: as for `features`: a folder, a list of paths or PIL images, a `datasets.Dataset`, an array.
        batch_size: images that go through the network at once.
        device: where the network runs; None takes a GPU if there is one.

    Raises:
        ValueError: if there is no such classifier, there are no images, or one cannot be decoded.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = Classifier(classifier).to(device).eval()
    crops = CentreCrops(images, DataSettings(image_size=network.image_size))
    with torch.inference_mode():
        found = [network(pixels.to(device)).float().softmax(1).cpu() for pixels in DataLoader(crops, batch_size)]
    return Classes(torch.cat(found).numpy(), network.class_names)
