"""Run a gap study.

The study starts a process for each unit (arm, seed, variant). The process calls the functions behind `mpp.pretrain`,
`mpp.evaluate` and `mpp.finetune`, which resume from their latest checkpoints, and writes `unit.json` at its end. A unit
that has one is never run again.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpp.commands.evaluate import DATA_ORDER, asked_for, evaluate, is_evaluated
from mpp.commands.finetune import finetune
from mpp.commands.preflight import check_network, check_objective, check_optimizer
from mpp.commands.pretrain import pretrain
from mpp.data.label_subsets import dev_split, fraction_rows
from mpp.data.sampler import Numbers
from mpp.data.splits import Splits, open_splits
from mpp.data.table import ImageTable
from mpp.encoder.probe import has_patches
from mpp.evaluation.callback import divided
from mpp.evaluation.evaluators import check_feasible
from mpp.extras import require
from mpp.files import write_text
from mpp.recipe import EvaluateRecipe, GapRecipe, same_data, write_recipe
from mpp.run_folder import FolderLock
from mpp.settings import SettingError, together
from mpp.study import results
from mpp.study.claims import EXPLAINED, answer_of, claims_of, note_of
from mpp.study.processes import OUTCOME, PATIENCE, run_all
from mpp.study.units import Unit, data_of, recipes_of, unit_named, units_of
from mpp.training.metrics_log import read_metrics
from mpp.training.signals import STARTED_BY, StopRequest, exit_code


def study(recipe: GapRecipe) -> int:
    """Run the unfinished units of a study, and write its results and report; the exit code.

    Raises:
        ValueError: for mistakes in the recipe.
        RuntimeError: if a unit failed.
    """
    folder = Path(recipe.output_dir)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a study starts its own processes: run python -m mpp.gap, with study.parallel for several")
    require("a study", "scipy")  # first, and not at its end
    if recipe.study.only:
        chosen = [unit_named(recipe, name) for name in recipe.study.only]
        if STARTED_BY not in os.environ:
            _check_networks(recipe, chosen)
            _check_data(recipe, chosen)
        return _run_here(recipe, chosen)
    lock = FolderLock(folder, recipe.command)  # held until the process ends
    if recipe.study.scale != 1:
        print(f"study.scale: pre-training is {recipe.study.scale:g} times as long; fine-tuning keeps its length")
    units = units_of(recipe)
    done = [unit for unit in units if _outcome_of(recipe, unit)]  # raises for units that ran with other settings
    failed: list[str] = []
    if len(done) < len(units):
        _check_networks(recipe, units)
        _check_data(recipe, units)
    write_recipe(recipe, folder / "recipe.yaml")
    code = run_all(recipe, folder, units, failed) if len(done) < len(units) else 0
    outcomes = {unit: outcome for unit in units if (outcome := _outcome_of(recipe, unit))}
    if outcomes:
        from mpp.study.report.page import write_page  # late: matplotlib

        found = summarize(recipe, outcomes)
        found["unfinished"] = [str(unit) for unit in units if unit not in outcomes]
        write_text(folder / "results.json", _compact(found))
        page = write_page(found, folder)
        shown = [claim for claim in found["claims"] if claim["headline"]]
        lines = [f"{claim['text']}: {claim['verdict']}." for claim in shown]
        lines += [f"({verdict}: {EXPLAINED[verdict]})" for verdict in dict.fromkeys(c["verdict"] for c in shown)]
        if found["answer"]:
            print("\n" + textwrap.fill(found["answer"], 80))
        if lines:
            print("\n" + "\n".join(textwrap.fill(line, 80, subsequent_indent="    ") for line in lines))
        print(f"\nresults: {folder / 'results.json'}\nreport: {page}")
    del lock
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(units)} units failed:\n" + "\n".join(failed))
    return code


def summarize(recipe: GapRecipe, outcomes: dict[Unit, dict[str, Any]]) -> dict[str, Any]:
    """What `results.json` holds: the arms, the units, the claims, and the table of all numbers."""
    rows = results.read([row for outcome in outcomes.values() for row in outcome["rows"]])
    named = {unit.arm: recipe.study.arm(unit.arm) for unit in outcomes}
    arms = {
        name: {"title": arm.title or name, "role": arm.role}
        for name, arm in sorted(named.items(), key=lambda item: item[1].role == "control")  # controls last
    }
    claims = claims_of(rows, arms)
    one = same_data(recipe.upstream, recipe.downstream) and not recipe.study.with_labels
    return {
        "arms": arms,
        "note": note_of(claims),
        "answer": answer_of(claims, arms),
        "one_data_set": one,
        "recipe": recipe.model_dump(mode="json"),
        "units": [
            {"name": str(unit), "arm": unit.arm, "seed": unit.seed, **unit.variant._asdict(),
             "reconstructions": outcome["reconstructions"]}
            for unit, outcome in outcomes.items()
        ],
        "claims": claims,
        "columns": list(results.Row._fields),
        "rows": [list(row) for row in rows],
    }  # fmt: skip


def _compact(found: dict[str, Any]) -> str:
    """JSON with a line for each row of a list."""
    parts = []
    for name, part in found.items():
        lines = ",\n".join(json.dumps(each) for each in part) if isinstance(part, list) else ""
        parts.append(f'"{name}": ' + (f"[\n{lines}\n]" if isinstance(part, list) else json.dumps(part)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _check_networks(recipe: GapRecipe, units: list[Unit]) -> None:
    """Check, before any data is read, that timm can build the networks and optimisers."""
    together(
        *(partial(_check_unit, recipe, unit) for unit in units),
        lambda: check_optimizer(recipe.pretraining.optimizer),
        lambda: check_optimizer(recipe.finetuning.optimizer),
    )


def _check_unit(recipe: GapRecipe, unit: Unit) -> None:
    """Check that timm can make the network and the arm's own optimizer, and that its objective fits the patches."""
    arm, size, recipes = recipe.study.arm(unit.arm), unit.variant.size, recipes_of(recipe, unit)
    first = next(iter(recipes.named().values()), None)  # from scratch without fine-tuning there is none
    if first is not None and arm.start == "random":
        patches = arm.objective is not None and arm.objective.needs_patches
        check_network(first.encoder, recipe.upstream, patches=patches)
    if recipes.pretrain is None:
        return
    try:
        if arm.optimizer:
            check_optimizer(recipes.pretrain.optimizer)
        check_objective(recipes.pretrain.objective, recipes.pretrain.encoder, recipe.upstream.image_size)
    except SettingError as error:
        where = recipe.study if size is None else recipe.study.sizes[size]
        raise where.error(arms=f"{unit.arm}: {'; '.join(error.complaints.values())}") from error


def _check_data(recipe: GapRecipe, units: list[Unit]) -> None:
    """Check, before anything is trained, that the data sets can be read, and have enough images and labels."""
    for swapped in sorted({unit.variant.swapped for unit in units}):
        upstream, downstream = data_of(recipe, swapped=swapped)
        here = [unit for unit in units if unit.variant.swapped == swapped]
        measured, seed = recipe.pretraining.evaluation, recipe.study.seeds[0]
        supervised = any(recipe.study.arm(unit.arm).role == "supervised" for unit in here)
        rows = open_splits(upstream, seed, labelled=supervised or bool(measured.evaluators)).train
        if measured.evaluators:
            divided(measured, rows)
        if (most := max(unit.variant.images or 0 for unit in here)) > len(rows):
            raise recipe.study.error(images=f"{most} are more than the {len(rows)} images of {upstream.source}")
        evaluated = open_splits(downstream, seed, labelled=True, held_out=DATA_ORDER)
        if same_data(upstream, downstream):
            _check_disjoint(rows, evaluated, labelled=bool(recipe.study.with_labels))
        labels = evaluated.train.labels
        assert labels is not None
        if len(np.unique(labels)) < 2:
            raise ValueError(f"{downstream.source} has images of a single class; classification needs two")
        _check_evaluation(recipe, labels)


def _check_disjoint(rows: ImageTable, evaluated: Splits, *, labelled: bool) -> None:
    """Check that no image to pre-train on is among those to test on, nor, if labels are used, to fit to."""
    for part, use in ((evaluated.train, "fitted to"), (evaluated.validation, "tested on")):
        shared = len(np.intersect1d(rows.source_rows, part.source_rows))
        if shared and (labelled or part is evaluated.validation):
            raise ValueError(
                f"{shared} of the {len(rows)} images to pre-train on ({rows.split}) are among the {len(part)} of "
                f"{part.split} downstream, which representations are {use}; choose disjoint splits"
            )


def _check_evaluation(recipe: GapRecipe, labels: Numbers) -> None:
    """Check that there are enough labelled images; every seed draws as many of each class."""
    part, seed, sizes = recipe.evaluation, recipe.study.seeds[0], recipe.study.sizes.values()
    used = labels[fraction_rows(labels, part.labels.fraction, seed)]
    networks = [(recipe.encoder.name, recipe.encoder.arguments)]
    networks += [(other.name, other.arguments) for other in sizes if other.name is not None]
    objectives = [recipe.study.arm(unit.arm).objective for unit in units_of(recipe)]
    defaults = {"token"} | {"avg" for each in objectives if each is not None and not each.trains_class_token}
    pools = set(part.features.pools)
    for pool in (recipe.encoder.pool, *(other.pool or recipe.encoder.pool for other in sizes)):
        pools |= defaults if pool is None else {pool}
    several = part.features.blocks != "last" or len(pools) > 1
    chooses = part.labels.dev > 0 and several and any(has_patches(*network) for network in networks)
    dev = dev_split(used, part.labels.dev, seed) if chooses else None
    check_feasible(asked_for(part), used, dev, part.by_depth)


def _run_here(recipe: GapRecipe, units: list[Unit]) -> int:
    """Run units in this process: 0, or the exit code of a stop."""
    stop = StopRequest()
    for unit in units:
        path = _path(recipe, unit)
        lock = FolderLock(path.parent, patience=PATIENCE)  # the worker of a killed study may still be saving
        if _outcome_of(recipe, unit):
            print(f"{unit}: done before")
            continue
        for stage in recipes_of(recipe, unit).named().values():
            if code := COMMANDS[stage.command](stage, stop):
                return code
            if (number := stop.asked()) is not None:
                return exit_code(number)
        write_text(path, json.dumps(_outcome(recipe, unit)) + "\n")
        del lock
    return 0


def _evaluate(recipe: EvaluateRecipe, stop: StopRequest) -> int:
    """Evaluate frozen features, if that is not done yet; a signal ends it at once, and the next call resumes."""
    if is_evaluated(recipe):
        return 0
    stop.forget()
    code = evaluate(recipe)
    stop.listen()
    return code


COMMANDS: dict[str, Callable[..., int]] = {"pretrain": pretrain, "evaluate": _evaluate, "finetune": finetune}


def _outcome(recipe: GapRecipe, unit: Unit) -> dict[str, Any]:
    """What `unit.json` holds: the recipes that the unit ran, all its numbers, and its picture."""
    recipes, home = recipes_of(recipe, unit), _path(recipe, unit).parent
    log = home / "pretrain" / "metrics.jsonl"
    pictures = [m["reconstructions"] for m in read_metrics(log) if "reconstructions" in m] if recipes.pretrain else []
    return {
        "recipes": recipes.plain(),
        "rows": [list(row) for row in results.unit_rows(unit, recipes, home)],
        "reconstructions": f"{unit}/pretrain/{pictures[-1]}" if pictures else None,
    }


def _outcome_of(recipe: GapRecipe, unit: Unit) -> dict[str, Any] | None:
    """The results of a unit, if it is finished.

    Raises:
        ValueError: if it ran with other settings, naming those.
    """
    path = _path(recipe, unit)
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
            "give the same settings to resume the study, or choose another output_dir"
        )
    return outcome


def _path(recipe: GapRecipe, unit: Unit) -> Path:
    return Path(recipe.output_dir) / str(unit) / OUTCOME
