"""The evaluations in the folder of a run, and the command that makes one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpp.commands.score_table import score_notes, score_rows
from mpp.commands.score_verdict import score_verdict
from mpp.data.label_subsets import dev_split
from mpp.data.settings import NetworkSizeSettings
from mpp.data.splits import open_splits
from mpp.encoder.local import WEIGHTS
from mpp.evaluation.evaluators import check_feasible
from mpp.evaluation.settings import FewShotSettings, NeighbourSettings
from mpp.files import sha256
from mpp.recipe import EvaluateRecipe, differences, load_recipe
from mpp.recipe.yaml import in_line

PLACEHOLDER = "mpp evaluate few_shot encoder={run} data.source=LABELLED"
CARRIED = ("source", "image_folder", "subset", "revision", "split", "validation_split", "image_column", "label_column",
           "background", "bits")  # fmt: skip
"""Settings of a run's data that an evaluation on the same images needs."""
FEWER_SHOTS = ((1, 5, 10), (1, 5), (1, 2), (1,))
FEWER_NEIGHBOURS = ((20, 10), (10, 5), (5,), (1,))
"""What is tried in turn where the recipe asks for more images than there are."""


def evaluations_in(run: Path) -> list[dict[str, Any]]:
    """Each evaluation of a run, to be shown; those of the weights that its encoder has now come first.

    `is_current` is false where the weights were others, such as those of an earlier checkpoint.
    """
    now = digest_of_export(run)
    found = [
        shown(results) | {"is_current": now is None or results.get("source_weights") in (None, now)}
        for path in sorted(run.glob("evaluation/*/results.json"))
        if (results := read(path)) is not None
    ]
    return sorted(found, key=lambda evaluation: not evaluation["is_current"])


def shown(results: dict[str, Any]) -> dict[str, Any]:
    """The results of an evaluation with its table and sentences."""
    return {
        "controls": {}, "is_current": True, **results,
        "rows": score_rows(results), "notes": score_notes(results), "verdict": score_verdict(results),
    }  # fmt: skip


def read(path: Path) -> dict[str, Any] | None:
    """JSON, None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def digest_of_export(run: Path) -> str | None:
    """The SHA-256 of a run's exported weights, which evaluations write down; None without an export."""
    return next((sha256(path) for name in WEIGHTS if (path := run / "encoder" / name).is_file()), None)


def evaluate_command(run: Path, state: dict[str, Any], earlier: Mapping[str, Any] | None = None) -> tuple[str, bool]:
    """The command that evaluates a run, and whether it works as it is: on the run's own data, if that has labels.

    A data set on the Hub is not asked for its labels; it can be if the objective needed them. `earlier` are the results
    of an evaluation of other weights, whose own settings are repeated.
    """
    recipe, data = state["recipe"], state["recipe"]["data"]
    here = shlex.quote(f"encoder={run}")
    if earlier is not None:
        return _joined(here, _settings_of(earlier["recipe"])), True
    placeholder = PLACEHOLDER.format(run="RUN").replace("encoder=RUN", here)
    defaults = NetworkSizeSettings().model_dump(mode="json")
    settings = [f"data.{name}={'null' if data[name] is None else data[name]}" for name in CARRIED
                if name == "source" or data.get(name, defaults[name]) != defaults[name]]  # fmt: skip
    is_local = "data" in state.get("local", ()) or data["source"].startswith("embedded")
    if not is_local:
        supervised = recipe["objective"]["kind"] == "supervised"
        return (_joined(here, settings), True) if supervised else (placeholder, False)
    try:
        loaded = load_recipe("few_shot", [f"encoder={run}", *settings])
        assert isinstance(loaded, EvaluateRecipe)
        return _joined(here, [*settings, *_fewer(loaded)]), True
    except (ValueError, RuntimeError, OSError):  # moved, without labels, or with too few of them
        return placeholder, False


def _settings_of(recipe: Mapping[str, Any]) -> list[str]:
    """The overrides of `few_shot` that give the recipe of an evaluation, but for its encoder and its folder."""
    given = [f"data.source={recipe['data']['source']}"]
    loaded = load_recipe("few_shot", [*given, "encoder=raw_pixels"])
    try:
        before = EvaluateRecipe.model_validate(recipe)
    except ValueError:  # of an earlier version
        return given
    changed = [(path, new) for path, _, new in differences(loaded, before)
               if path.partition(".")[0] not in ("encoder", "output_dir", "compute")]  # fmt: skip
    return given + [f"{path}={in_line(new)}" for path, new in changed]


def _joined(first: str, settings: list[str]) -> str:
    return " ".join(["mpp evaluate few_shot", first, *map(shlex.quote, settings)])


def _fewer(recipe: EvaluateRecipe) -> list[str]:
    """The overrides by which each class has enough images.

    Raises:
        ValueError: if the data has no labels, or too few for any choice.
    """
    splits = open_splits(recipe.data, recipe.seed, labelled=True, held_out=("test", "validation"))
    labels = splits.train.labels
    assert labels is not None
    dev = dev_split(labels, recipe.labels.dev, recipe.labels.seed)
    assert recipe.few_shot is not None
    assert recipe.knn is not None
    found: list[str] = []
    choices = (
        ("few_shot.shots", [FewShotSettings(shots=shots) for shots in (recipe.few_shot.shots, *FEWER_SHOTS)]),
        ("knn.k", [NeighbourSettings(k=k) for k in (recipe.knn.k, *FEWER_NEIGHBOURS)]),
    )
    for name, tried in choices:
        for number, settings in enumerate(tried):
            try:
                check_feasible([settings], labels, dev, (settings.name,))
            except ValueError:
                if number == len(tried) - 1:
                    raise
                continue
            if number:
                values = settings.shots if isinstance(settings, FewShotSettings) else settings.k
                found.append(f"{name}=[{','.join(map(str, values))}]")
            break
    return found
