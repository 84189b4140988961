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
from pathlib import Path
from typing import Any

from mpp.commands.evaluate import evaluate, is_evaluated
from mpp.commands.finetune import finetune
from mpp.commands.pretrain import pretrain
from mpp.data.inventory import counted
from mpp.evaluation.predictions import FILE, LABELS, write_predictions
from mpp.extras import require
from mpp.files import write_text
from mpp.recipe import EvaluateRecipe, GapRecipe, same_data, write_recipe
from mpp.run_folder import FolderLock
from mpp.study import pilot, results
from mpp.study.claims import EXPLAINED, answer_of, claims_of, note_of
from mpp.study.outcomes import Outcome, Outcomes
from mpp.study.preflight import PrimaryClaims, check_claims, check_data, check_networks, check_same_images, images_of
from mpp.study.processes import PATIENCE, run_all
from mpp.study.unit_recipes import recipes_of
from mpp.study.units import Unit, pilot_units, unit_named, units_of
from mpp.training.error_budget import NonFiniteError
from mpp.training.metrics_log import read_metrics
from mpp.training.signals import STARTED_BY, StopRequest, exit_code


def study(recipe: GapRecipe) -> int:
    """Run the pilot and the unfinished units of a study, and write its results and report; the exit code.

    Raises:
        ValueError: for mistakes in the recipe.
        RuntimeError: if a unit failed.
    """
    folder = Path(recipe.output_dir)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a study starts its own processes: run python -m mpp.gap, with study.parallel for several")
    require("a study", "scipy")  # first, and not at its end
    check_claims(recipe)
    if recipe.study.only:
        chosen = [unit_named(recipe, name) for name in recipe.study.only]
        if STARTED_BY not in os.environ:
            claims = PrimaryClaims(recipe)
            claims.check()
            if any(unit.trial is None for unit in chosen):
                recipe = _with_choices(recipe)
            check_networks(recipe, chosen)
            check_data(recipe, chosen)
            claims.write()
        return _run_here(recipe, chosen)
    lock = FolderLock(folder, recipe.command)  # held until the process ends
    if recipe.study.scale != 1:
        print(f"study.scale: pre-training is {recipe.study.scale:g} times as long; fine-tuning keeps its length")
    claims = PrimaryClaims(recipe)
    claims.check()
    failed: list[str] = []
    code, recipe = _pilot(recipe, claims, failed)
    if code or failed:
        return _end(code, failed)
    outcomes, units = Outcomes(recipe), units_of(recipe)
    done = {unit: outcome for unit in units if (outcome := outcomes.read(unit))}  # raises for other settings
    left = not recipe.study.report_only and len(done) < len(units)
    if left:
        check_networks(recipe, units)
        check_data(recipe, units, done)
        write_recipe(recipe, folder / "recipe.yaml")
    elif not recipe.study.report_only:
        check_same_images(recipe, done)
    if left or done:
        claims.write()
    if left:
        code = run_all(recipe, units, lambda unit: outcomes.home(unit) is not None, failed)
    done = {unit: outcome for unit in units if (outcome := outcomes.read(unit))}
    for unit in done:
        outcomes.keep(unit)
    if done:
        _report(recipe, outcomes, done, units)
    elif recipe.study.report_only:
        raise ValueError(f"no unit of this study is finished, neither in {folder} nor in study.keep")
    del lock
    return _end(code, failed)


def _end(code: int, failed: list[str]) -> int:
    """The exit code; a RuntimeError if units failed."""
    if failed:
        raise RuntimeError(f"{len(failed)} unit{'s' * (len(failed) > 1)} failed:\n" + "\n".join(failed))
    return code


def _with_choices(recipe: GapRecipe) -> GapRecipe:
    """The recipe with what the pilot chose, for units that are run by themselves.

    Raises:
        SettingError: if the pilot is not finished.
    """
    given, outcomes = recipe.study.choices, Outcomes(recipe)
    units = [unit for unit in pilot_units(recipe) if unit.arm not in given]
    if left := [str(unit) for unit in units if outcomes.read(unit) is None]:
        raise recipe.study.error(only=f"the pilot decides the rates of these units, and is not finished: run {left[0]}")
    chosen = pilot.choices_of(pilot.read([row for unit in units for row in (outcomes.read(unit) or {})["tried"]]))
    study = recipe.study.model_copy(update={"choices": {**given, **chosen}})
    return recipe.model_copy(update={"study": study})


def _pilot(recipe: GapRecipe, claims: PrimaryClaims, failed: list[str]) -> tuple[int, GapRecipe]:
    """Run what is left of the pilot: 0 or the exit code of a stop, and the recipe with what the pilot chose."""
    outcomes, units, given = Outcomes(recipe), pilot_units(recipe), recipe.study.choices
    units = [unit for unit in units if unit.arm not in given or outcomes.home(unit) is not None]
    if not units:
        return 0, recipe
    bare = recipe.model_copy(update={"study": recipe.study.model_copy(update={"choices": {}})})
    done = {unit: outcome for unit in units if (outcome := outcomes.read(unit))}
    code = 0
    if len(done) < len(units):
        if recipe.study.report_only:
            left = len(units) - len(done)
            raise ValueError(
                f"{left} of {len(units)} units of the pilot are not finished: there is nothing to report yet"
            )
        both = [*units, *units_of(recipe)]
        check_networks(bare, both)
        check_data(bare, both, done)
        claims.write()
        write_recipe(bare, Path(recipe.output_dir) / "recipe.yaml")
        print(f"the pilot chooses the rates of every arm ({counted(len(units), 'unit')})", flush=True)
        code = run_all(bare, units, lambda unit: outcomes.home(unit) is not None, failed)
        done = {unit: outcome for unit in units if (outcome := outcomes.read(unit))}
    if code or failed or len(done) < len(units):
        return code, recipe
    for unit in done:
        outcomes.keep(unit)
    chosen = pilot.choices_of(pilot.read([row for outcome in done.values() for row in outcome["tried"]]))
    for arm, choice in given.items():
        if arm in chosen and chosen[arm] != choice:
            raise recipe.study.error(choices=f"{arm}: {choice!r} is not what its pilot chose: {chosen[arm]!r}")
    assert recipe.study.pilot is not None
    for arm in dict.fromkeys(unit.arm for unit in units):
        lacking = [each for each in recipe.finetuning.fractions
                   if arm not in chosen or f"{each:g}" not in chosen[arm].finetuning]  # fmt: skip
        if arm not in chosen or lacking:
            raise RuntimeError(f"no training of the pilot stayed finite for {arm}: try smaller rates in study.pilot")
    print(pilot.summary_of(chosen, recipe.study.pilot), flush=True)
    study = recipe.study.model_copy(update={"choices": {**given, **chosen}})
    return 0, recipe.model_copy(update={"study": study})


def _report(recipe: GapRecipe, outcomes: Outcomes, done: dict[Unit, Outcome], units: list[Unit]) -> None:
    """Write results and page, and print the answer and the primary claims."""
    from mpp.study.report.page import write_page  # late: matplotlib

    folder = Path(recipe.output_dir)
    found = summarize(recipe, outcomes, done)
    found["unfinished"] = [str(unit) for unit in units if unit not in done]
    write_text(folder / "results.json", _compact(found))
    page = write_page(found, folder)
    shown = [claim for claim in found["claims"] if claim["primary"]]
    lines = [f"{claim['text']}: {claim['verdict']}." for claim in shown]
    lines += [f"({verdict}: {EXPLAINED[verdict]})" for verdict in dict.fromkeys(c["verdict"] for c in shown)]
    if found["answer"]:
        print("\n" + textwrap.fill(" ".join(found["answer"]), 80))
    if lines:
        print("\n" + "\n".join(textwrap.fill(line, 80, subsequent_indent="    ") for line in lines))
    print(f"\nresults: {folder / 'results.json'}\nreport: {page}")


def summarize(recipe: GapRecipe, outcomes: Outcomes, done: dict[Unit, Outcome]) -> dict[str, Any]:
    """What `results.json` holds: the arms, the units, the claims, the pilot, and the table of all numbers."""
    rows = results.read([row for outcome in done.values() for row in outcome["rows"]])
    named = {unit.arm: recipe.study.arm(unit.arm) for unit in done}
    arms = {
        name: {"title": arm.title or name, "role": arm.role}
        for name, arm in sorted(named.items(), key=lambda item: item[1].role == "control")  # controls last
    }
    evidence = results.Evidence({unit: outcomes.predictions(unit) for unit in done})
    claims = claims_of(rows, arms, evidence, recipe)
    tried = [row for unit in pilot_units(recipe) for row in (outcomes.read(unit) or {}).get("tried", ())]
    return {
        "arms": arms,
        "note": note_of(claims),
        "answer": answer_of(claims, arms, rows),
        "one_data_set": same_data(recipe.upstream, recipe.downstream) and not recipe.study.with_labels,
        "recipe": recipe.model_dump(mode="json"),
        "units": [
            {"name": str(unit), "arm": unit.arm, "seed": unit.seed, **unit.variant._asdict(),
             "reconstructions": outcome["reconstructions"]}
            for unit, outcome in done.items()
        ],
        "claims": claims,
        "pilot_columns": list(pilot.Tried._fields),
        "pilot": [list(row) for row in tried],
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


def _run_here(recipe: GapRecipe, units: list[Unit]) -> int:
    """Run units in this process: 0, or the exit code of a stop."""
    stop, outcomes = StopRequest(), Outcomes(recipe)
    for unit in units:
        home = outcomes.folder / str(unit)
        lock = FolderLock(home, patience=PATIENCE)  # the worker of a killed study may still be saving
        if outcomes.read(unit):
            print(f"{unit}: done before")
            continue
        for stage in recipes_of(recipe, unit).named().values():
            try:
                code = 0 if unit.trial is not None and pilot.diverged(stage) else COMMANDS[stage.command](stage, stop)
            except NonFiniteError as error:
                if unit.trial is None:
                    raise
                print(f"{error}\nthe pilot does not choose this rate", flush=True)
                pilot.note_divergence(stage)
                code = 0
            if code:
                return code
            if (number := stop.asked()) is not None:
                return exit_code(number)
        if unit.trial is None:
            predictions = results.unit_predictions(recipes_of(recipe, unit), home)
            if predictions:  # from scratch without fine-tuning nothing is predicted
                write_predictions(home / FILE, predictions, predictions.pop(LABELS))
        outcomes.write(unit, _outcome(recipe, unit))
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


def _outcome(recipe: GapRecipe, unit: Unit) -> Outcome:
    """What `unit.json` holds: the recipes that the unit ran, its images, all its numbers, and its picture."""
    recipes, home = recipes_of(recipe, unit), Path(recipe.output_dir) / str(unit)
    found: Outcome = {"recipes": recipes.plain(), "images": images_of(recipe, swapped=unit.variant.swapped)}
    if unit.trial is not None:
        return found | {"tried": [list(row) for row in pilot.tried_by(unit, recipes, home)]}
    log = home / "pretrain" / "metrics.jsonl"
    pictures = [m["reconstructions"] for m in read_metrics(log) if "reconstructions" in m] if recipes.pretrain else []
    return found | {
        "rows": [list(row) for row in results.unit_rows(unit, recipes, home)],
        "reconstructions": f"{unit}/pretrain/{pictures[-1]}" if pictures else None,
    }
