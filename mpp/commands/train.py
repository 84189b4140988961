"""A recipe from Python: `mpp.train("mean_color", overrides=["data.source=photos"])`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from accelerate.state import AcceleratorState

from mpp.commands.finetune import finetune
from mpp.commands.pretrain import pretrain
from mpp.commands.report import verdict
from mpp.commands.score_verdict import standard_error
from mpp.data.inventory import counted
from mpp.encoder.backbone import Backbone
from mpp.encoder.load import load_encoder
from mpp.recipe import FinetuneRecipe, PretrainRecipe, open_recipe, write_recipe
from mpp.settings import Settings
from mpp.training.metrics_log import read_metrics

INSTEAD = {"evaluate": "mpp.scores(…) evaluates", "predict": "mpp.classify(…) predicts", "embed": "mpp.features(…)"}
"""What does from Python what a command does."""


class Trained(NamedTuple):
    """What a run gives."""

    encoder: Backbone
    """With the weights of the last step."""
    metrics: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    folder: Path
    """The run's folder."""

    @property
    def test(self) -> dict[str, Any] | None:
        """After a fine-tuning `accuracy` and `loss` on the test split, and its number of `images`; else None."""
        path = self.folder / "results.json"
        return json.loads(path.read_text(encoding="utf-8"))["test"] if path.is_file() else None

    def __repr__(self) -> str:
        steps = counted(self.metrics[-1]["step"], "step") if self.metrics else "no steps"
        return f"run in {self.folder}: {steps}\n  {self._result()}\n  {self.encoder.summary}"

    def _result(self) -> str:
        """The last validation against its baselines, or the accuracy on the test split."""
        if test := self.test:
            error = 100 * standard_error(test["accuracy"], test["images"])
            return (f"test split: accuracy {test['accuracy']:.2%} of {counted(test['images'], 'image')} (standard "
                    f"error {error:.1f} points), loss {test['loss']:.3f}")  # fmt: skip
        newest = max(self.folder.glob("checkpoints/*/state.json"))
        return verdict(json.loads(newest.read_text(encoding="utf-8")), self.metrics) or "nothing was validated"


def train(recipe: str | Path | Settings, overrides: Iterable[str] = ()) -> Trained:
    """Run a recipe of `mpp pretrain` or `mpp finetune` in this process, or resume it.

    Args:
        recipe: a file, the name of a recipe that ships with the package, or what `load_recipe` gives.
        overrides: settings as on the command line, `key=value`.

    Raises:
        ValueError: for what the user can correct, or a recipe of another command.
        RuntimeError: if the run could not continue.
        KeyboardInterrupt: if it was interrupted; its state is saved, and the same call resumes it.
    """
    loaded = loaded_recipe(recipe, list(overrides))
    if not isinstance(loaded, PretrainRecipe | FinetuneRecipe):
        instead = INSTEAD.get(loaded.command, f"give it to the command mpp {loaded.command}")
        raise ValueError(f"this recipe is for mpp {loaded.command}, which trains no encoder: {instead}")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run here may have had another precision
    try:
        code = pretrain(loaded) if isinstance(loaded, PretrainRecipe) else finetune(loaded)
    except KeyboardInterrupt as error:  # before the first step, where a signal does not wait for one to end
        raise KeyboardInterrupt(f"interrupted; the same call continues with the run in {loaded.output_dir}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code:
        raise KeyboardInterrupt(f"interrupted and saved; the same call resumes the run in {loaded.output_dir}")
    folder = Path(loaded.output_dir)
    return Trained(load_encoder(folder), read_metrics(folder / "metrics.jsonl"), folder)


def loaded_recipe(recipe: str | Path | Settings, overrides: list[str]) -> Any:
    """A recipe of any command with its overrides, whichever way it is given."""
    if not isinstance(recipe, Settings):
        return _open(recipe, overrides)
    if not overrides:
        return recipe
    with TemporaryDirectory() as folder:
        write_recipe(recipe, Path(folder) / "recipe.yaml")
        return _open(Path(folder) / "recipe.yaml", overrides)


def _open(path: str | Path, overrides: list[str]) -> Any:
    document, recipe = open_recipe(path, overrides, None)
    for note in document.notes:
        print(note)
    return recipe
