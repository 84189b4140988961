"""Checks before anything of a study is trained: networks, data, and its primary claims."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpp.commands.evaluate import DATA_ORDER, asked_for
from mpp.commands.preflight import check_network, check_objective, check_optimizer
from mpp.commands.resume import identity_of
from mpp.data.label_subsets import dev_split, fraction_rows
from mpp.data.sampler import Numbers
from mpp.data.settings import DataSettings
from mpp.data.splits import Splits, open_splits
from mpp.data.table import ImageTable
from mpp.encoder.probe import has_patches
from mpp.evaluation.callback import divided
from mpp.evaluation.evaluators import check_feasible
from mpp.evaluation.settings import CONTROLS
from mpp.files import write_text
from mpp.recipe import GapRecipe, same_data
from mpp.settings import SettingError, together
from mpp.study.claims import measure_of, primary_of
from mpp.study.outcomes import OUTCOME, Outcome
from mpp.study.unit_recipes import data_of, recipes_of
from mpp.study.units import PILOT, Unit

PRIMARY = "primary"
"""The name of the file with the primary claims, as they were before the study ran."""


def check_networks(recipe: GapRecipe, units: list[Unit]) -> None:
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


def check_data(recipe: GapRecipe, units: list[Unit], done: Mapping[Unit, Outcome] | None = None) -> None:
    """Check, before anything is trained, that the data sets can be read, and have enough images and labels.

    `done` are the results of units that are finished, which have to be of the same images.
    """
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
        if recipe.study.pilot is not None:
            _check_reserved(rows, open_splits(_reserved(downstream), seed, labelled=True).validation)
        _check_evaluation(recipe, labels)
    check_same_images(recipe, done or {})


def _reserved(data: DataSettings) -> DataSettings:
    return data.model_copy(update={"evaluate_on": "reserved"})


def _check_reserved(rows: ImageTable, reserved: ImageTable) -> None:
    """Check that nothing pre-trains on the images that the pilot is evaluated on."""
    if rows.name.split(",")[0] == reserved.name.split(",")[0]:
        shared = len(np.intersect1d(rows.source_rows, reserved.source_rows))
        if shared:
            raise ValueError(
                f"{shared} of the {len(rows)} images to pre-train on ({rows.split}) are among the {len(reserved)} that "
                "study.pilot.reserved takes for the pilot alone; use the same split upstream and downstream, or "
                "disjoint ones"
            )


def check_same_images(recipe: GapRecipe, done: Mapping[Unit, Outcome]) -> None:
    """Check that finished units, perhaps of another machine, are of the images that are there now.

    Raises:
        ValueError: for the first that is of others.
    """
    units = {unit: outcome for unit, outcome in done.items() if "images" in outcome}
    now = {swapped: images_of(recipe, swapped=swapped) for swapped in {unit.variant.swapped for unit in units}}
    for unit, outcome in units.items():
        for name, found in now[unit.variant.swapped].items():
            if outcome["images"][name] != found:
                raise ValueError(
                    f"{unit} was run on other images: {name} had {outcome['images'][name]['rows']:,} rows then, "
                    f"{found['rows']:,} now"
                    + ("; the rows themselves differ" if found["rows"] == outcome["images"][name]["rows"] else "")
                    + "; give the same data, or choose another output_dir and study.keep"
                )


def images_of(recipe: GapRecipe, *, swapped: bool) -> dict[str, dict[str, Any]]:
    """What identifies the images of a study wherever they lie: to pre-train on, to fit to and to test on."""
    upstream, downstream = data_of(recipe, swapped=swapped)
    before = open_splits(upstream, 0).train
    evaluated = open_splits(downstream, 0, labelled=True, held_out=DATA_ORDER)
    images = {"upstream": before, "downstream": evaluated.train, "test": evaluated.validation}
    return {name: identity_of(rows) for name, rows in images.items()}


def check_claims(recipe: GapRecipe) -> None:
    """Check that the primary claims are about something that the study measures.

    Raises:
        SettingError: for the first that is not.
    """
    study, told = recipe.study, set[tuple[Any, ...]]()
    own = (*study.arms, *(CONTROLS if study.controls else ()))
    for claim in study.primary or ():
        with study.blamed("primary"):
            measure = measure_of(claim, recipe.evaluation, recipe.finetuning.fractions)
        called = f"{claim.higher} > {claim.lower} by {claim.by}"
        for name in (claim.higher, claim.lower):
            role = study.arm(name).role
            if name not in own:
                raise study.error(primary=f"{called}: {name} is run along an axis alone")
            if role == ("control" if claim.by == "finetune" else "scratch"):
                what = "is not fine-tuned" if role == "control" else "has no frozen features that are evaluated"
                raise study.error(primary=f"{called}: {name} {what}")
        if claim.higher == claim.lower or (key := (claim.higher, claim.lower, measure)) in told:
            raise study.error(primary=f"{called}: the arms of a claim differ, and each claim is named once")
        told.add(key)


class PrimaryClaims:
    """The primary claims of a study as they were before it ran: in its folder, and beside the kept units."""

    def __init__(self, recipe: GapRecipe) -> None:
        self._recipe, folder = recipe, Path(recipe.output_dir)
        claims = [
            claim.model_copy(
                update={"setting": measure_of(claim, recipe.evaluation, recipe.finetuning.fractions).setting}
            )
            for claim in primary_of(recipe)
        ]
        self._claims = [claim.model_dump(mode="json") for claim in claims]
        self._paths = [folder / f"{PRIMARY}.json"]
        self._folders = [folder]
        if recipe.study.keep is not None:  # where several studies may keep their units
            kept = Path(recipe.study.keep).expanduser()
            self._paths.append(kept / f"{PRIMARY}-{folder.name}.json")
            self._folders.append(kept)

    def check(self) -> None:
        """Refuse other claims, or fewer seeds, once there are results, of whichever units.

        Raises:
            SettingError: with both lists of claims.
        """
        found = (path.relative_to(folder) for folder in self._folders for path in folder.rglob(OUTCOME))
        if not any(path.parts[0] != PILOT for path in found):
            return
        before = {path: json.loads(path.read_text(encoding="utf-8")) for path in self._paths if path.is_file()}
        if not before and self._claims:
            raise self._recipe.study.error(
                primary=f"there are results, and {self._paths[-1]} with the claims that were named before is missing; "
                "restore it, rename the study (another output_dir and keep), or name none (study.primary=[])"
            )
        for path, found in before.items():
            if found["claims"] != self._claims:
                raise self._recipe.study.error(
                    primary=f"the primary claims were changed after there were results: {path} has "
                    f"{_listed(found['claims'])}, and the recipe {_listed(self._claims)}; give the old ones back, or "
                    "rename the study (another output_dir and keep)"
                )
            if missing := sorted({*found["seeds"]} - {*self._recipe.study.seeds}):
                listed = ", ".join(map(str, missing))
                raise self._recipe.study.error(
                    seeds=f"seeds were left out after there were results: {listed}; give them back, or rename the study"
                )

    def write(self) -> None:
        """Write the claims and the seeds down."""
        text = json.dumps({"seeds": list(self._recipe.study.seeds), "claims": self._claims}, indent=1) + "\n"
        for path in self._paths:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, text)


def _listed(claims: list[dict[str, Any]]) -> str:
    """Claims as one line."""
    found = [f"{c['higher']} > {c['lower']} by {c['by']}" + (f" {c['setting']:g}" if c["setting"] else "")
             for c in claims]  # fmt: skip
    return ", ".join(found) or "none"


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
    objectives = [recipe.study.arm(name).objective for name in recipe.study.names]
    defaults = {"token"} | {"avg" for each in objectives if each is not None and not each.trains_class_token}
    pools = set(part.features.pools)
    for pool in (recipe.encoder.pool, *(other.pool or recipe.encoder.pool for other in sizes)):
        pools |= defaults if pool is None else {pool}
    several = part.features.blocks != "last" or len(pools) > 1
    chooses = part.labels.dev > 0 and several and any(has_patches(*network) for network in networks)
    dev = dev_split(used, part.labels.dev, seed) if chooses else None
    check_feasible(asked_for(part), used, dev, part.by_depth)
