"""A gap study: what `mpp.gap` does once the recipe is read.

The study starts a process for each unit (arm, seed, variant), one after the other. The process runs the very functions
behind `mpp.pretrain`, `mpp.evaluate` and `mpp.finetune`, each of which goes on from where it stands, and writes
`unit.json` at its end. A unit that has one is never run again.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mpp.evaluating import evaluate
from mpp.evaluation.comparison import summarize
from mpp.files import write_text
from mpp.finetuning import finetune
from mpp.pretraining import pretrain
from mpp.recipe import GapRecipe, differences, load_recipe, write_recipe
from mpp.report.page import write_page
from mpp.training.checkpoint import Checkpoints
from mpp.training.journal import read_metrics
from mpp.training.launch import FolderLock
from mpp.units import Unit, recipes_of, unit_named, units_of

MAY_CHANGE = ("study.", "output_dir")
NOT_YET = 75
"""Exit code of a study that stopped because its time was up: the same command goes on."""
PATIENCE = 120.0
"""Seconds that a unit is given to save when it is asked to stop."""


def study(recipe: GapRecipe) -> int:
    """Run what is left of a study, and write its report; the exit code.

    Raises:
        ValueError: for what the user can mend.
        RuntimeError: if a unit failed.
    """
    folder = Path(recipe.output_dir)
    if recipe.study.only:
        return _run_here(recipe, [unit_named(recipe, name) for name in recipe.study.only])
    lock = FolderLock(folder)  # held until the process ends
    _check_same_study(recipe, folder)
    write_recipe(recipe, folder / "recipe.yaml")
    units = units_of(recipe)
    for unit in units:  # what cannot be combined is found before anything runs
        recipes_of(recipe, unit)
    code = _run_all(recipe, folder, units)
    done = [unit for unit in units if _path(folder, unit).is_file()]
    if done:
        results = summarize([json.loads(_path(folder, unit).read_text()) for unit in done])
        results["recipe"] = recipe.model_dump(mode="json")
        results["unfinished"] = [str(unit) for unit in units if unit not in done]
        write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
        page = write_page(results, folder)
        print(f"\n{results['sentence_count']} claims, in words and with intervals:")
        for claim in results["claims"]:
            if claim["headline"]:
                print(f"  {claim['sentence']}")
        print(f"\nresults: {folder / 'results.json'}\nreport: {page}")
    del lock
    return code


def _run_all(recipe: GapRecipe, folder: Path, units: list[Unit]) -> int:
    """Every unit that is not finished, each in a process of its own: 0, or how it was stopped."""
    begun = time.monotonic()
    deadline = begun + 60 * recipe.study.minutes if recipe.study.minutes else None
    stop = _Stop()
    for number, unit in enumerate(units, start=1):
        name = f"[{number}/{len(units)}] {unit}"
        if _path(folder, unit).is_file():
            print(f"{name}: done before", flush=True)
            continue
        if stop.asked or (deadline and time.monotonic() > deadline):
            break
        print(f"{name} …", flush=True)
        since = time.monotonic()
        code = _run_apart(folder, unit, deadline, stop)
        if stop.asked or code == NOT_YET:
            break
        if code:
            log = folder / str(unit) / "log.txt"
            last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-15:])
            raise RuntimeError(f"{unit} ended with exit code {code}; the end of {log}:\n{last}")
        print(f"{name}: {tqdm.format_interval(time.monotonic() - since)}", flush=True)
    left = sum(not _path(folder, unit).is_file() for unit in units)
    if not left:
        return 0
    print(f"\n{left} of {len(units)} are left. Give the same command again to go on.")
    return 128 + stop.asked if stop.asked else NOT_YET


def _run_apart(folder: Path, unit: Unit, deadline: float | None, stop: _Stop) -> int:
    """Run a unit in a process of its own; its exit code, or `NOT_YET` if it was stopped because time was up."""
    home = folder / str(unit)
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mpp.gap", str(folder / "recipe.yaml"), f'study.only=["{unit}"]']
    command += [f"output_dir={folder}"]  # the folder may have been moved since
    with (home / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        asked = 0.0
        while (code := process.poll()) is None:
            time.sleep(0.2)
            late = bool(deadline) and time.monotonic() > (deadline or 0)
            if (stop.asked or late) and not asked:
                asked = time.monotonic()
                process.send_signal(signal.SIGTERM)
            if asked and time.monotonic() > asked + PATIENCE:
                process.kill()  # what it saved last stands
    return NOT_YET if asked and code else code


class _Stop:
    """Remembers that the study was asked to stop."""

    def __init__(self) -> None:
        self.asked = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = number


def _run_here(recipe: GapRecipe, units: list[Unit]) -> int:
    """Run units in this process: 0, or the exit code of what was stopped."""
    for unit in units:
        path = _path(Path(recipe.output_dir), unit)
        if path.is_file():
            print(f"{unit}: done before")
            continue
        recipes = recipes_of(recipe, unit)
        stages: list[Any] = []
        if recipes.pretrain is not None:
            stages.append(lambda r=recipes.pretrain: pretrain(r))
        if recipes.evaluate is not None and not (Path(recipes.evaluate.output_dir or "") / "results.json").is_file():
            stages.append(lambda r=recipes.evaluate: evaluate(r))
        stages += [lambda r=each: finetune(r) for each in recipes.finetune.values()]
        for stage in stages:
            if code := stage():
                return code
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(_outcome(recipe, unit)) + "\n")
    return 0


def _outcome(recipe: GapRecipe, unit: Unit) -> dict[str, Any]:
    """What a finished unit has to say, as JSON."""
    recipes, home = recipes_of(recipe, unit), Path(recipe.output_dir) / str(unit)
    outcome: dict[str, Any] = {"name": str(unit), **unit._asdict(), "pretraining": None, "evaluation": None}
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
    outcome["finetuning"] = {
        fraction: {
            **json.loads((Path(each.output_dir) / "results.json").read_text()),
            "curve": [
                {"samples": m["samples"], "accuracy": m["validation/accuracy"]}
                for m in read_metrics(Path(each.output_dir) / "metrics.jsonl")
                if "validation/accuracy" in m
            ],
        }
        for fraction, each in recipes.finetune.items()
    }
    return outcome


def _check_same_study(recipe: GapRecipe, folder: Path) -> None:
    """Refuse to mix the results of two studies.

    Raises:
        ValueError: with what is different.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        return
    before: GapRecipe = load_recipe(path, command="gap")
    changed = [d for d in differences(before, recipe) if not d[0].startswith(MAY_CHANGE) or d[0] == "study.scale"]
    if changed:
        listed = "\n".join(f"  {name}: {old!r} then, {new!r} now" for name, old, new in changed)
        raise ValueError(
            f"{folder} holds a study with other settings:\n{listed}\n"
            "give the same settings to go on with it, or choose another output_dir"
        )


def _path(folder: Path, unit: Unit) -> Path:
    return folder / str(unit) / "unit.json"
