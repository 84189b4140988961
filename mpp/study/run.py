"""A gap study: what `mpp.gap` does once the recipe is read.

The study starts a process for each unit (arm, seed, variant). The process runs the very functions
behind `mpp.pretrain`, `mpp.evaluate` and `mpp.finetune`, each of which goes on from where it stands, and writes
`unit.json` at its end. A unit that has one is never run again.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mpp.commands.evaluate import DATA_ORDER, asked_for, evaluate, is_evaluated
from mpp.commands.finetune import Candidate, finetune
from mpp.commands.preflight import check_network, check_objective, check_optimizer
from mpp.commands.pretrain import pretrain
from mpp.data.sampler import Numbers
from mpp.data.sources import ImageRows, Splits, open_splits
from mpp.data.splits import dev_split, fraction_rows
from mpp.encoder.inspect import has_patches
from mpp.encoder.settings import EncoderSettings
from mpp.evaluation.callback import divided
from mpp.evaluation.controls import CONTROLS
from mpp.evaluation.evaluators import check_feasible
from mpp.files import write_text
from mpp.objective.settings import MaskedPatchSettings
from mpp.recipe import EvaluateRecipe, FinetuneRecipe, GapRecipe, PretrainRecipe, same_data, write_recipe
from mpp.run_folder import FolderLock
from mpp.settings import SettingError, together
from mpp.study.claims import summarize
from mpp.study.processes import OUTCOME, PATIENCE, run_all
from mpp.study.report.page import write_page
from mpp.study.units import Unit, recipes_of, unit_named, units_of
from mpp.training.checkpoint import Checkpoints
from mpp.training.metrics_log import read_metrics
from mpp.training.signals import STARTED_BY, StopRequest, exit_code


def study(recipe: GapRecipe) -> int:
    """Run what is left of a study, and write its report; the exit code.

    Raises:
        ValueError: for what the user can mend.
        RuntimeError: if a unit failed.
    """
    folder = Path(recipe.output_dir)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a study starts its own processes: run python -m mpp.gap, with study.parallel for several")
    _check_installed(recipe)
    if recipe.study.only:
        chosen = [unit_named(recipe, name) for name in recipe.study.only]
        if STARTED_BY not in os.environ:
            _check_networks(recipe, chosen)
            _check_data(recipe, chosen)
        return _run_here(recipe, chosen)
    lock = FolderLock(folder)  # held until the process ends
    units = units_of(recipe)
    done = [unit for unit in units if _outcome_of(recipe, unit)]  # refuses what was run with other settings
    write_recipe(recipe, folder / "recipe.yaml")
    failed: list[str] = []
    if len(done) < len(units):
        _check_networks(recipe, units)
        _check_data(recipe, units)
    code = 0 if len(done) == len(units) else run_all(recipe.study, folder, units, failed)
    outcomes = {unit: outcome for unit in units if (outcome := _outcome_of(recipe, unit))}
    if outcomes:
        results = summarize(list(outcomes.values()))
        results["recipe"] = recipe.model_dump(mode="json")
        results["unfinished"] = [str(unit) for unit in units if unit not in outcomes]
        write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
        page = write_page(results, folder)
        headlines = [claim["sentence"] for claim in results["claims"] if claim["headline"]]
        print("\n" + "\n".join(textwrap.fill(said, 80, subsequent_indent="    ") for said in headlines))
        print(f"\nresults: {folder / 'results.json'}\nreport: {page}")
    del lock
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(units)} units failed:\n" + "\n".join(failed))
    return code


def _check_installed(recipe: GapRecipe) -> None:
    """Find out now, and not at the end, whether something is missing.

    Raises:
        RuntimeError: naming it.
    """
    needed = ["scipy", "matplotlib", "jinja2", *(["sklearn"] if recipe.evaluation.linear_probe else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        raise RuntimeError(f'a study needs {", ".join(missing)}: pip install "mpp[study]"')


def _check_networks(recipe: GapRecipe, units: list[Unit]) -> None:
    """Refuse what timm cannot build, before any data is read.

    Raises:
        SettingError: with all complaints.
    """
    found: dict[tuple[str | None, bool], EncoderSettings] = {}
    objectives: dict[tuple[str | None, str], Callable[[], None]] = {}
    for unit in units:
        recipes = recipes_of(recipe, unit)
        first = next(iter(recipes.named().values()), None)  # from scratch without fine-tuning there is none
        if first is not None and unit.arm not in CONTROLS:
            patches = recipes.pretrain is not None and isinstance(recipes.pretrain.objective, MaskedPatchSettings)
            found[unit.size, patches] = first.encoder  # pyright: ignore[reportAttributeAccessIssue]
        if recipes.pretrain is not None:
            objectives[unit.size, unit.arm] = partial(_check_objective, recipe, recipes.pretrain, unit)
    together(
        *(partial(check_network, each, recipe.upstream, patches=patches) for (_, patches), each in found.items()),
        *objectives.values(),
        lambda: check_optimizer(recipe.pretraining.optimizer),
        lambda: check_optimizer(recipe.finetuning.optimizer),
    )


def _check_objective(recipe: GapRecipe, pretraining: PretrainRecipe, unit: Unit) -> None:
    """Refuse an arm whose target or corruption does not fit the patches.

    Raises:
        SettingError: of the arm, with all complaints.
    """
    try:
        check_objective(pretraining.objective, pretraining.encoder, pretraining.data.image_size)
    except SettingError as error:
        where = recipe.study if unit.size is None else recipe.study.sizes[unit.size]
        raise where.error(arms=f"{unit.arm}: {'; '.join(error.complaints.values())}") from error


def _check_data(recipe: GapRecipe, units: list[Unit]) -> None:
    """Open the data sets once, before anything is trained on them.

    Raises:
        ValueError: if one of them cannot be had, or does not have what the study asks for.
    """
    for back in sorted({unit.back for unit in units}):
        upstream, downstream = (recipe.downstream, recipe.upstream) if back else (recipe.upstream, recipe.downstream)
        here = [unit for unit in units if unit.back == back]
        labelled = bool(recipe.pretraining.evaluation.evaluators) or any(unit.arm == "supervised" for unit in here)
        rows = open_splits(upstream, recipe.study.seeds[0], labelled=labelled).train
        if recipe.pretraining.evaluation.evaluators:
            divided(recipe.pretraining.evaluation, rows)
        if (most := max((unit.images or 0 for unit in here), default=0)) > len(rows):
            raise recipe.study.error(images=f"{most} are more than the {len(rows)} images of {upstream.source}")
        judged = open_splits(downstream, recipe.study.seeds[0], labelled=True, held_out=DATA_ORDER)
        if same_data(upstream, downstream):
            _check_apart(rows, judged)
        labels = judged.train.labels
        assert labels is not None
        if len(np.unique(labels)) < 2:
            raise ValueError(f"{downstream.source} holds images of a single class: there is nothing to tell apart")
        _check_evaluation(recipe, labels)


def _check_apart(rows: ImageRows, judged: Splits) -> None:
    """Refuse to pre-train on images that representations are judged by.

    Raises:
        ValueError: with how many there are.
    """
    for part in judged:
        if shared := len(np.intersect1d(rows.places, part.places)):
            raise ValueError(
                f"{shared} of the {len(rows)} images to pre-train on ({rows.split}) are among the {len(part)} of "
                f"{part.split} downstream, which representations are judged by; choose two data sets, or splits apart"
            )


def _check_evaluation(recipe: GapRecipe, labels: Numbers) -> None:
    """Refuse what there are too few labelled images for; every seed draws as many of each class.

    Raises:
        SettingError: naming the setting and both numbers.
    """
    part, seed = recipe.evaluation, recipe.study.seeds[0]
    used = labels[fraction_rows(labels, part.labels.fraction, seed)]
    networks = [(recipe.encoder.name, recipe.encoder.arguments)]
    networks += [(other.name, other.arguments) for other in recipe.study.sizes.values() if other.name is not None]
    several = part.features.blocks != "last" or len({*part.features.pools, recipe.encoder.pool or "token"}) > 1
    chooses = part.labels.dev > 0 and several and any(has_patches(*network) for network in networks)
    dev = dev_split(used, part.labels.dev, seed) if chooses else None
    check_feasible(asked_for(part), used, dev, part.by_depth)


def _run_here(recipe: GapRecipe, units: list[Unit]) -> int:
    """Run units in this process: 0, or the exit code of what was stopped."""
    stop = StopRequest()
    for unit in units:
        path = _path(Path(recipe.output_dir), unit)
        lock = FolderLock(path.parent, patience=PATIENCE)  # one whose study was killed is still saving
        if _outcome_of(recipe, unit):
            print(f"{unit}: done before")
            continue
        recipes = recipes_of(recipe, unit)
        stages: list[Callable[[], int]] = []
        if recipes.pretrain is not None:
            stages.append(partial(pretrain, recipes.pretrain, stop))
        if recipes.evaluate is not None:
            stages.append(partial(_evaluate, recipes.evaluate, stop))
        stages += [partial(finetune, each, stop) for each in recipes.finetune.values()]
        for run in stages:
            if code := run():
                return code
            if (number := stop.asked()) is not None:
                return exit_code(number)
        write_text(path, json.dumps(_outcome(recipe, unit)) + "\n")
        del lock
    return 0


def _evaluate(recipe: EvaluateRecipe, stop: StopRequest) -> int:
    """Measure frozen features, if that is not done yet; a signal ends it at once, and it goes on with what is left."""
    if is_evaluated(recipe):
        return 0
    stop.forget()
    code = evaluate(recipe)
    stop.listen()
    return code


def _outcome(recipe: GapRecipe, unit: Unit) -> dict[str, Any]:
    """What a finished unit has to say, as JSON."""
    recipes, home = recipes_of(recipe, unit), Path(recipe.output_dir) / str(unit)
    outcome: dict[str, Any] = {"name": str(unit), **unit._asdict(), "pretraining": None, "evaluation": None}
    outcome["recipes"] = recipes.plain()
    if recipes.pretrain is not None:
        run = home / "pretrain"
        checkpoint = Checkpoints(run / "checkpoints", 2).newest(print)
        assert checkpoint is not None
        state, batch = checkpoint.state, recipes.pretrain.training.batch_size
        metrics = read_metrics(run / "metrics.jsonl")
        looks = [m for m in metrics if any(name.startswith(("validation/", "evaluation/")) for name in m)]
        pictures = [m["reconstructions"] for m in metrics if "reconstructions" in m]
        outcome["pretraining"] = {
            "images_seen": checkpoint.step * batch,
            "flops_per_image": state["flops_per_image"],
            "seconds": state["progress"]["seconds"],
            "rows": state["data"]["rows"],
            "baselines": state["baselines"],
            "curve": [
                {name: value for name, value in look.items() if isinstance(value, int | float)} for look in looks
            ],
            "reconstructions": f"{unit}/pretrain/{pictures[-1]}" if pictures else None,
        }
    if recipes.evaluate is not None:
        outcome["evaluation"] = json.loads((home / "evaluation" / "results.json").read_text())
    outcome["finetuning"] = {fraction: _finetuned(each) for fraction, each in recipes.finetune.items()}
    return outcome


def _finetuned(recipe: FinetuneRecipe) -> dict[str, Any]:
    """The results of a fine-tuning, and its accuracies on the dev split: after a search, of the run that was chosen."""
    folder = Path(recipe.output_dir)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    if results["search"]:
        folder = folder / "search" / str(Candidate(**results["chosen"]))
    looks = (m for m in read_metrics(folder / "metrics.jsonl") if "validation/accuracy" in m)
    return results | {"curve": [{"samples": m["samples"], "accuracy": m["validation/accuracy"]} for m in looks]}


def _outcome_of(recipe: GapRecipe, unit: Unit) -> dict[str, Any] | None:
    """What a unit has to say, if it is finished.

    Raises:
        ValueError: if it was run with other settings, with what is different.
    """
    path = _path(Path(recipe.output_dir), unit)
    if not path.is_file():
        return None
    outcome: dict[str, Any] = json.loads(path.read_text())
    try:
        changed = recipes_of(recipe, unit).changes(outcome["recipes"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} was written by another version of this package, whose settings cannot be compared; "
            "choose another output_dir"
        ) from error
    if changed:
        listed = "\n".join(f"  {name}: {old!r} then, {new!r} now" for name, old, new in changed[:5])
        more = f"\n  and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"{path.parent} was run with other settings:\n{listed}{more}\n"
            "give the same settings to go on with the study, or choose another output_dir"
        )
    return outcome


def _path(folder: Path, unit: Unit) -> Path:
    return folder / str(unit) / OUTCOME
