"""Claims: paired differences of arms, each with an interval and a verdict."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpp.study.results import Cells, Measure, Row, accuracies, measures
from mpp.study.statistics import Interval, paired
from mpp.study.units import Variant

NO_SPREAD = 1e-9
"""Differences of accuracies that vary less than this are equal but for rounding."""
SHOWN, REVERSE, OPEN, WITHHELD = "shown", "shown, the other way round", "not resolved", "no verdict"
ENOUGH = 3
"""Seeds in common from which a comparison gets a verdict."""
EXPLAINED = {
    SHOWN: "the 95 % interval of the difference over the seeds does not contain 0",
    REVERSE: "the interval does not contain 0, but the difference is negative",
    OPEN: "the interval contains 0, or the difference is the same for every seed",
    WITHHELD: f"fewer than {ENOUGH} seeds, too few to tell a difference from chance",
}
"""Each verdict in words."""
NOTE = (
    "{count} comparisons, each with an interval of its own; none is corrected for their number, so about one in twenty "
    "that mean nothing would be called shown. The headline ones were chosen before anything was measured."
)


def claims_of(rows: list[Row], arms: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Every comparison that a study is made for, variant by variant; `arms` has the `title` and `role` of each."""
    found = []
    for variant in dict.fromkeys(row.variant for row in rows):
        cells = accuracies(rows, variant)
        for layer in ("chosen", "default"):
            for measure in measures(cells, layer):
                found += _Comparisons(cells, measure, variant, arms).all()
    return found


@dataclass(frozen=True)
class _Comparisons:
    """The claims about one measure of one variant."""

    cells: Cells
    measure: Measure
    variant: Variant
    arms: Mapping[str, Mapping[str, str]]

    def of(self, *roles: str) -> list[str]:
        """The arms of some roles, in their order."""
        return [name for name, arm in self.arms.items() if arm["role"] in roles and name in self.cells]

    @property
    def floors(self) -> list[str]:
        """The arms without pre-training that a pre-trained arm should exceed."""
        return self.of("scratch" if self.measure.evaluator == "finetune" else "random")

    def all(self) -> Iterator[dict[str, Any]]:
        """Over its floor, below supervised, the order of the three; over controls and other targets."""
        learnt = self.of("self-supervised", "pretrained")
        for arm in learnt:
            for floor in self.floors:
                yield from self.pair(floor, arm)
            for other in self.of("supervised"):
                yield from self.pair(arm, other)
                for floor in self.floors:
                    yield from self.order(floor, arm, other)
            for floor in self.of("random") if self.measure.evaluator == "finetune" else ():
                yield from self.pair(floor, arm)
        for other in (*self.of("control"), *learnt[1:]) if learnt else ():
            yield from self.pair(other, learnt[0])

    def pair(self, lower: str, higher: str) -> Iterator[dict[str, Any]]:
        """How much better one arm is than another; nothing where they have no seed in common.

        A single seed has no interval: its bounds are None.
        """
        low, high = (self.cells[arm].get(self.measure, {}) for arm in (lower, higher))
        seeds = sorted(low.keys() & high.keys())
        if not seeds:
            return
        text = f"{self.arms[higher]['title']} against {self.arms[lower]['title']}: "
        if len(seeds) == 1:
            mean = high[seeds[0]] - low[seeds[0]]
            text += f"{signed(100 * mean)} points"
            yield self.claim([lower, higher], seeds, WITHHELD, text) | {"mean": mean, "low": None, "high": None}
            return
        interval = paired([low[seed] for seed in seeds], [high[seed] for seed in seeds])
        mean, least, most = (signed(100 * value) for value in interval)
        text += f"{mean} points [{least}, {most}]"
        yield self.claim([lower, higher], seeds, verdict_of(interval, len(seeds)), text) | interval._asdict()

    def order(self, *arms: str) -> Iterator[dict[str, Any]]:
        """The order of three arms, claimed only where both lower bounds are above 0; nothing without verdicts."""
        steps = [step for pair in itertools.pairwise(arms) for step in self.pair(*pair)]
        if len(steps) == 2 and WITHHELD not in (step["verdict"] for step in steps):
            verdict = SHOWN if all(step["verdict"] == SHOWN for step in steps) else OPEN
            seeds = min((step["seeds"] for step in steps), key=len)
            yield self.claim([*arms], seeds, verdict, " < ".join(self.arms[name]["title"] for name in arms))

    def claim(self, arms: list[str], seeds: list[int], verdict: str, text: str) -> dict[str, Any]:
        """A claim as JSON."""
        where = f" ({variant_title(self.variant)})" if self.variant != Variant() else ""
        last = ", last block" if self.measure.layer == "default" else ""
        return {
            **self.variant._asdict(),
            **self.measure._asdict(),
            "arms": arms,
            "seeds": seeds,
            "verdict": verdict,
            "headline": self.is_headline(arms),
            "text": f"{self.measure.title}{last}{where}: {text}",
        }

    def is_headline(self, arms: list[str]) -> bool:
        """The few claims that are shown first, chosen before anything is measured."""
        if self.measure.layer == "default" or self.variant != Variant():
            return False
        same = [each.setting or 0 for each in measures(self.cells) if each.evaluator == self.measure.evaluator]
        if self.measure.evaluator == "few_shot" and self.measure.setting != max(same):
            return False
        learnt = self.of("self-supervised") or self.of("pretrained")
        chain = [*self.floors[:1], *learnt[:1], *self.of("supervised")[:1]]
        return arms in (chain, chain[:2], chain[1:])


def verdict_of(interval: Interval, seeds: int) -> str:
    """What an interval over so many seeds shows."""
    if seeds < ENOUGH:
        return WITHHELD
    if interval.high - interval.low < NO_SPREAD:  # equal differences by chance: their spread says nothing
        return OPEN
    return SHOWN if interval.low > 0 else REVERSE if interval.high < 0 else OPEN


def note_of(claims: list[dict[str, Any]]) -> str:
    """How far the verdicts can be trusted."""
    judged = sum("mean" in claim and claim["verdict"] != WITHHELD for claim in claims)
    none = f"No comparison has the {ENOUGH} seeds that a verdict needs: differences are shown, and no verdicts."
    return NOTE.format(count=judged) if judged else none


def answer_of(claims: list[dict[str, Any]], arms: Mapping[str, Mapping[str, str]]) -> str:
    """The headline claims in one sentence, from the side of the arm that learns; empty if there are none."""
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for claim in claims:
        if claim["headline"] and "mean" in claim:
            pairs.setdefault((claim["arms"][0], claim["arms"][1]), []).append(claim)
    parts: dict[bool, list[str]] = {False: [], True: []}
    subject = ""
    for (lower, higher), found in pairs.items():
        gap = arms[higher]["role"] == "supervised"
        learnt, other = (arms[arm]["title"] for arm in ((lower, higher) if gap else (higher, lower)))
        subject = subject or learnt
        points = sorted((-100 if gap else 100) * claim["mean"] for claim in found)
        ends = dict.fromkeys(signed(end) for end in (points[0], points[-1]))
        # A difference that is shown has its sign here; which way round it was asked does not matter.
        counts = Counter(SHOWN if claim["verdict"] == REVERSE else claim["verdict"] for claim in found)
        told = next(iter(counts)) if len(counts) == 1 else ", ".join(f"{v} by {n}" for v, n in counts.items())
        seeds = min(len(claim["seeds"]) for claim in found)
        told += f": {seeds} seed{'s' if seeds > 1 else ''}" if WITHHELD in counts else ""
        parts[gap].append(f"{' to '.join(ends)} against “{other}” ({told})")
    listed = [*parts[False], *parts[True]]  # first what is gained, then what is missing
    if not listed:
        return ""
    first = ", ".join(listed[:-1]) + " and " if listed[1:] else ""
    return f"In points of accuracy, “{subject}” is at {first}{listed[-1]}."


def variant_title(variant: Variant) -> str:
    """A variant in words; empty for the study itself."""
    parts = ["swapped direction"] if variant.swapped else []
    parts += [f"{variant.images:,} pre-training images"] if variant.images else []
    return ", ".join([*parts, *([f"size {variant.size}"] if variant.size else [])])


def signed(points: float, form: str = ".1f") -> str:
    """A difference with its sign, a true minus; what rounds to 0 has none."""
    text = f"{points:{form}}"
    return text.lstrip("-") if float(text) == 0 else f"+{text}" if points > 0 else f"−{text[1:]}"
