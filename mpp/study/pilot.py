"""The pilot of a study: what each arm tried, and the rates that its dev accuracy chooses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpp.files import write_text
from mpp.recipe import EvaluateRecipe, FinetuneRecipe, PretrainRecipe
from mpp.study.results import time_of
from mpp.study.settings import Choice, PilotSettings, TuningChoice
from mpp.study.unit_recipes import Recipes
from mpp.study.units import Unit
from mpp.training.checkpoint import Checkpoints

DIVERGED = "diverged.json"
"""In the folder of a training of the pilot whose loss did not stay finite: its recipe."""
Stage = PretrainRecipe | EvaluateRecipe | FinetuneRecipe
JUDGES = ("linear_probe", "knn", "few_shot")
"""Evaluators by whose accuracy a rate is chosen where nothing is fine-tuned, the first that is there."""


class Tried(NamedTuple):
    """One training of the pilot, or one evaluation of frozen features."""

    arm: str
    stage: str
    """`pretrain`, `finetune` or `evaluate`."""
    lr: float | None
    """Of pre-training; None where none was tried."""
    fraction: float | None = None
    """Of the labels, in fine-tuning."""
    tuning_lr: float | None = None
    pool: str | None = None
    accuracy: float | None = None
    """On the reserved images; None for pre-training, and for what did not stay finite."""
    images_seen: float = 0.0
    flops: float = 0.0
    core_seconds: float = 0.0


def note_divergence(stage: Stage) -> None:
    """Remember that a training of the pilot did not stay finite: it would do so again."""
    folder = Path(str(stage.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / DIVERGED, stage.model_dump_json() + "\n")


def diverged(stage: Stage) -> bool:
    """Whether a training of the pilot did not stay finite, or the pre-training that it starts from."""
    places = [Path(str(stage.output_dir)), *([Path(stage.encoder.source)] if stage.encoder.source else [])]
    return any((place / DIVERGED).is_file() for place in places)


def tried_by(unit: Unit, recipes: Recipes, home: Path) -> Iterator[Tried]:
    """What a finished unit of the pilot tried, from the files in its folder; without accuracy what diverged."""
    assert unit.trial is not None
    own = Tried(unit.arm, "pretrain", unit.trial.lr)
    if recipes.pretrain is not None:
        checkpoint = Checkpoints(home / "pretrain" / "checkpoints", 2).newest(print)
        if checkpoint is None:
            assert diverged(recipes.pretrain)
            yield own
        else:
            images, state = checkpoint.step * recipes.pretrain.training.batch_size, checkpoint.state
            time = time_of(state["progress"]["seconds"])["core_seconds"]
            yield own._replace(images_seen=images, flops=images * state["flops_per_image"], core_seconds=time)
    if recipes.evaluate is not None:
        accuracy = None
        if not diverged(recipes.evaluate):
            scores = json.loads((home / "evaluation" / "results.json").read_text())["scores"]
            judge = next(name for name in JUDGES if name in scores)
            accuracy = scores[judge]["headline"]["accuracy"]
        yield own._replace(stage="evaluate", accuracy=accuracy)
    for tuning, recipe in recipes.finetune.items():
        tried = own._replace(stage="finetune", fraction=tuning.fraction, tuning_lr=tuning.lr, pool=tuning.pool)
        if diverged(recipe):
            yield tried
            continue
        results = json.loads((home / tuning.folder / "results.json").read_text())
        cost = {name: float(results[name]) for name in ("images_seen", "flops")}
        cost |= {"core_seconds": time_of(results["seconds"])["core_seconds"]}
        yield tried._replace(accuracy=results["test"]["accuracy"], **cost)


def choices_of(tried: Iterable[Tried]) -> dict[str, Choice]:
    """The choice of each arm: the pre-training rate whose fine-tuning is best, and the best fine-tuning at that rate.

    With several shares of the labels, pre-training rates are compared by the mean over them; a share at which nothing
    stayed finite counts as 0. Of equals the smaller rate is taken.
    """
    found: dict[str, Choice] = {}
    tried = list(tried)
    scored = [each for each in tried if each.accuracy is not None]
    for arm in dict.fromkeys(each.arm for each in scored):
        by_rate: dict[float | None, list[Tried]] = {}
        for each in scored:
            if each.arm == arm:
                by_rate.setdefault(each.lr, []).append(each)
        best = {rate: _best(own) for rate, own in by_rate.items()}
        shares = len({each.fraction for each in tried if each.arm == arm and each.stage != "pretrain"})
        means = {rate: sum(each.accuracy or 0.0 for each in own.values()) / shares for rate, own in best.items()}
        rate = max(means, key=lambda lr: (means[lr], -(lr or 0.0)))
        tuned = {
            f"{fraction:g}": TuningChoice(lr=each.tuning_lr, pool=each.pool)  # pyright: ignore[reportArgumentType]
            for fraction, each in best[rate].items()
            if fraction is not None
        }
        found[arm] = Choice(lr=rate, finetuning=tuned)
    return found


def _best(tried: Sequence[Tried]) -> dict[float | None, Tried]:
    """The best at each share of the labels; of equals that of the smaller rate."""
    found: dict[float | None, Tried] = {}
    for each in sorted(tried, key=lambda each: each.tuning_lr or 0.0):
        if each.fraction not in found or (each.accuracy or 0.0) > (found[each.fraction].accuracy or 0.0):
            found[each.fraction] = each
    return found


def ends_of(choice: Choice, pilot: PilotSettings) -> list[str]:
    """The chosen rates that are at an end of their grid, in words: a better one may lie beyond."""
    rates = [("pre-training", choice.lr, pilot.lr)]
    rates += [(f"fine-tuning on {100 * float(fraction):g} %", tuning.lr, pilot.finetuning_lr)
              for fraction, tuning in choice.finetuning.items()]  # fmt: skip
    found = []
    for what, rate, grid in rates:
        if rate is not None and len(grid) > 1 and rate in (min(grid), max(grid)):
            found.append(f"{what}: {rate:g} is the {'smallest' if rate == min(grid) else 'largest'} rate of the grid")
    return found


def summary_of(choices: Mapping[str, Choice], pilot: PilotSettings) -> str:
    """What was chosen, a line for each arm, and the choices at an end of the grid."""
    lines = ["the pilot chose"]
    for arm, choice in choices.items():
        parts = [f"pre-training at {choice.lr:g}"] if choice.lr is not None else []
        for fraction, tuning in choice.finetuning.items():
            chosen = [*([f"{tuning.lr:g}"] if tuning.lr else []), *([f"pool {tuning.pool}"] if tuning.pool else [])]
            parts += [f"fine-tuning on {100 * float(fraction):g} % at {', '.join(chosen)}"] if chosen else []
        lines.append(f"  {arm}: {'; '.join(parts) or 'nothing'}")
        lines += [f"    {end}: a better one may lie beyond" for end in ends_of(choice, pilot)]
    return "\n".join(lines)


def read(rows: Iterable[Sequence[Any]]) -> list[Tried]:
    """Rows from JSON."""
    return [Tried(*row) for row in rows]
