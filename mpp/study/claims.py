"""Claims: differences of arms on the same test images by the same seeds, each with its interval.

The primary claims were named before the study ran, and are corrected for their number. All others are exploratory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpp.recipe import EvaluationPart, GapRecipe
from mpp.study.results import Cells, Evidence, Measure, Row, accuracies, measures
from mpp.study.settings import ClaimSettings
from mpp.study.statistics import Comparison, compare, detectable, holm
from mpp.study.units import Variant

SHOWN, REVERSE, OPEN, WITHHELD = "shown", "shown, the other way round", "not resolved", "no verdict"
EXPLORATORY = "exploratory"
ENOUGH = 3
"""Seeds in common from which a comparison gets a verdict."""
LEVEL = 0.05
"""Of the p-value, adjusted for the number of primary claims, below which a difference is shown."""
EXPLAINED = {
    SHOWN: f"p < {LEVEL:g}, corrected for the number of primary claims",
    REVERSE: f"p < {LEVEL:g}, corrected for the number of primary claims, but the difference is negative",
    OPEN: "the data do not tell the difference from 0",
    WITHHELD: f"fewer than {ENOUGH} seeds, or not all seeds of the study yet",
    EXPLORATORY: "not among the primary claims: an interval and no verdict",
}
"""Each verdict in words."""
Arms = Mapping[str, Mapping[str, str]]
"""`title` and `role` of each arm by its name."""
Claim = dict[str, Any]
"""A claim as JSON."""


def primary_of(recipe: GapRecipe) -> list[ClaimSettings]:
    """The primary claims: those of the recipe, or those of the paper's question for the arms that are there."""
    study = recipe.study
    if study.primary is not None:
        return list(study.primary)
    roles: dict[str, str] = {}
    for name in study.arms:
        roles.setdefault(study.arm(name).role, name)
    learnt = roles.get("self-supervised", roles.get("pretrained"))
    if learnt is None:
        return []
    found = []
    if recipe.finetuning.fractions:
        floor = roles.get("scratch", roles.get("random"))
        found += [ClaimSettings(higher=learnt, lower=floor, by="finetune")] if floor else []
        above = roles.get("supervised")
        found += [ClaimSettings(higher=above, lower=learnt, by="finetune")] if above else []
    if floor := roles.get("random"):
        asked = [name for name in ("knn", "linear_probe", "few_shot") if getattr(recipe.evaluation, name) is not None]
        found += [ClaimSettings(higher=learnt, lower=floor, by=name) for name in asked]  # pyright: ignore
    return found


def measure_of(claim: ClaimSettings, evaluation: EvaluationPart, fractions: Sequence[float]) -> Measure:
    """What a primary claim is measured by.

    Raises:
        ValueError: if the study does not measure it.
    """
    few_shot, knn = evaluation.few_shot, evaluation.knn
    there: dict[str, tuple[float | None, ...]] = {
        "few_shot": tuple(sorted(few_shot.shots, reverse=True)) if few_shot is not None else (),
        "knn": knn.k[:1] if knn is not None else (),
        "linear_probe": (None,) if evaluation.linear_probe is not None else (),
        "finetune": tuple(fractions),
    }
    known = there[claim.by]
    if not known or (claim.setting is not None and claim.setting not in known):
        asked = claim.by + ("" if claim.setting is None else f" {claim.setting:g}")
        listed = ", ".join("–" if each is None else f"{each:g}" for each in known) or "nothing"
        raise ValueError(f"{claim.higher} > {claim.lower} by {asked}: the study measures {listed} by {claim.by}")
    setting = known[0] if claim.setting is None else claim.setting
    return Measure(claim.by, setting, None if claim.by == "finetune" else "chosen")


def claims_of(rows: list[Row], arms: Arms, evidence: Evidence, recipe: GapRecipe) -> list[Claim]:
    """The primary claims, corrected for their number, then every other comparison, variant by variant."""
    cells = accuracies(rows, Variant())
    primary, named = list[Claim](), primary_of(recipe)
    for claim in named:
        measure = measure_of(claim, recipe.evaluation, recipe.finetuning.fractions)
        found = _Comparisons(cells, measure, Variant(), arms, evidence).pair(claim.lower, claim.higher)
        primary += [each | {"primary": True} for each in found]
    correct(primary, len(named), recipe.study.seeds)
    told = {_identity(claim) for claim in primary}
    others = [claim for claim in _exploratory(rows, arms, evidence) if _identity(claim) not in told]
    return [*primary, *others]


def correct(primary: list[Claim], named: int, seeds: Sequence[int]) -> None:
    """Adjust the p-values of primary claims, and give their verdicts, once all `seeds` of the study are there.

    A verdict on some of them would be one of several looks. The claims are corrected for all that were `named`: those
    that cannot be judged yet count as not shown.
    """
    whole = len(seeds) >= ENOUGH
    judged = [claim for claim in primary if whole and claim["p"] is not None and claim["seeds"] == sorted(seeds)]
    unknown = [1.0] * (named - len(judged))
    for claim, p in zip(judged, holm([*(claim["p"] for claim in judged), *unknown]), strict=False):
        verdict = OPEN if p >= LEVEL else SHOWN if claim["mean"] > 0 else REVERSE
        claim |= {"adjusted_p": p, "verdict": verdict}
        claim["detectable"] = detectable(Comparison(**{n: claim[n] for n in Comparison._fields}), named)
    for claim in primary:
        claim.setdefault("adjusted_p", None)
        claim.setdefault("detectable", None)
        if claim["verdict"] == EXPLORATORY:
            claim["verdict"] = WITHHELD


def _identity(claim: Claim) -> tuple[Any, ...]:
    return tuple(claim[name] for name in (*Variant._fields, *Measure._fields)), *claim["arms"]


def _exploratory(rows: list[Row], arms: Arms, evidence: Evidence) -> Iterator[Claim]:
    """Every arm with the others of its variant, and along each axis with itself as the study has it."""
    for variant in dict.fromkeys(row.variant for row in rows):
        cells, own = accuracies(rows, variant), Variant(variant.swapped)
        for layer in ("chosen", "default"):
            for measure in measures(cells, layer):
                here = _Comparisons(cells, measure, variant, arms, evidence)
                yield from here.all()
                if variant != own:
                    for arm in here.of("self-supervised", "pretrained", "supervised"):
                        yield from here.pair(arm, arm, accuracies(rows, own), own)


@dataclass(frozen=True)
class _Comparisons:
    """The claims about one measure of one variant."""

    cells: Cells
    measure: Measure
    variant: Variant
    arms: Arms
    evidence: Evidence

    def of(self, *roles: str) -> list[str]:
        """The arms of some roles, in their order."""
        return [name for name, arm in self.arms.items() if arm["role"] in roles and name in self.cells]

    def all(self) -> Iterator[Claim]:
        """Over the arms without pre-training, below supervised, over controls and other targets."""
        learnt = self.of("self-supervised", "pretrained")
        tuned = self.measure.evaluator == "finetune"
        for arm in learnt:
            for floor in self.of("random", "scratch") if tuned else self.of("random"):
                yield from self.pair(floor, arm)
            for other in self.of("supervised"):
                yield from self.pair(arm, other)
        for other in (*self.of("control"), *learnt[1:]) if learnt else ():
            yield from self.pair(other, learnt[0])

    def pair(
        self, lower: str, higher: str, cells: Cells | None = None, variant: Variant | None = None
    ) -> Iterator[Claim]:
        """How much better one arm is than another; nothing where they have no seed in common.

        `cells` and `variant` are those of the lower one, if they are not the same. A single seed has no interval: what
        takes several is None.
        """
        before = self.variant if variant is None else variant
        one, other = ((self.cells if each is None else each).get(arm, {}).get(self.measure, {})
                      for each, arm in ((cells, lower), (None, higher)))  # fmt: skip
        seeds = sorted(one.keys() & other.keys())
        if not seeds:
            return
        against = self.arms[lower]["title"] if before == self.variant else "as in the recipe"
        text = f"{self.arms[higher]['title']} against {against}: "
        found: Claim = dict.fromkeys(Comparison._fields) | {"mean": other[seeds[0]] - one[seeds[0]]}
        if len(seeds) > 1:
            low, high = (
                np.stack([self.evidence.of(arm, seed, each, self.measure) for seed in seeds])
                for arm, each in ((lower, before), (higher, self.variant))
            )
            found = compare(low, high)._asdict()
            text += (
                f"{signed(100 * found['mean'])} points [{signed(100 * found['low'])}, {signed(100 * found['high'])}]"
            )
        else:
            text += f"{signed(100 * found['mean'])} points"
        yield self.claim([lower, higher], seeds, text) | found

    def claim(self, arms: list[str], seeds: list[int], text: str) -> Claim:
        """A claim as JSON, exploratory as yet."""
        where = f" ({variant_title(self.variant)})" if self.variant != Variant() else ""
        last = ", last block" if self.measure.layer == "default" else ""
        return {
            **self.variant._asdict(),
            **self.measure._asdict(),
            "arms": arms,
            "seeds": seeds,
            "verdict": EXPLORATORY,
            "primary": False,
            "text": f"{self.measure.title}{last}{where}: {text}",
        }


def note_of(claims: list[Claim]) -> str:
    """How far the verdicts can be trusted."""
    primary = sum(claim["primary"] for claim in claims)
    return (
        f"{primary} primary claims were named before the study ran, and are corrected for their number by Holm's "
        f"method; the other {len(claims) - primary} comparisons are exploratory: about one in twenty of their "
        "intervals would miss 0 although there is no difference."
    )


def answer_of(claims: list[Claim], arms: Arms, rows: list[Row]) -> list[str]:
    """The answer in sentences: from the floor to what was learnt, and on to supervised pre-training, by one measure.

    The measure is that of the first primary claim. Empty if there is none.
    """
    primary = [claim for claim in claims if claim["primary"]]
    if not primary:
        return []
    first = primary[0]
    measure = Measure(*(first[name] for name in Measure._fields))
    cells = accuracies(rows, Variant())

    def mean(arm: str, claim: Claim) -> str:
        return f"{100 * float(np.mean([cells[arm][measure][seed] for seed in claim['seeds']])):.1f} %"

    lower, higher = first["arms"]
    by = measure.title[0].upper() + measure.title[1:]
    found = [
        f"{by}, “{arms[lower]['title']}” is right on {mean(lower, first)} of the test images.",
        f"“{arms[higher]['title']}” is right on {mean(higher, first)}: {_difference(first, arms)}.",
    ]
    for claim in primary[1:]:
        same = all(claim[name] == first[name] for name in Measure._fields)
        if same and claim["arms"][0] == higher:
            above = claim["arms"][1]
            found.append(f"“{arms[above]['title']}” is right on {mean(above, claim)}: {_difference(claim, arms)}.")
            break
    return found


def _difference(claim: Claim, arms: Arms) -> str:
    """`+3.9 points [2.1, 5.7] against “scratch”, shown (6 seeds)`."""
    points = f"{signed(100 * claim['mean'])} points"
    if claim["low"] is not None:
        points += f" [{signed(100 * claim['low'])}, {signed(100 * claim['high'])}]"
    against, seeds = arms[claim["arms"][0]]["title"], len(claim["seeds"])
    return f"{points} against “{against}”, {claim['verdict']} ({seeds} seed{'s' * (seeds != 1)})"


def variant_title(variant: Variant) -> str:
    """A variant in words; empty for the study itself."""
    parts = ["swapped direction"] if variant.swapped else []
    parts += [f"{variant.images:,} pre-training images"] if variant.images else []
    parts += [f"{variant.length:g} × the length"] if variant.length else []
    parts += [f"size {variant.size}"] if variant.size else []
    parts += [f"{100 * variant.corruption:g} % corrupted"] if variant.corruption else []
    return ", ".join([*parts, *([f"target {variant.target}"] if variant.target else [])])


def signed(points: float, form: str = ".1f") -> str:
    """A difference with its sign, a true minus; what rounds to 0 has none."""
    text = f"{points:{form}}"
    return text.lstrip("-") if float(text) == 0 else f"+{text}" if points > 0 else f"−{text[1:]}"
