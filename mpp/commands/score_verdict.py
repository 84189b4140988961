"""What the scores of an evaluation mean: the encoder against its controls and chance, with the standard error."""

from __future__ import annotations

import math
import textwrap
from typing import Any, NamedTuple

from mpp.commands.score_table import COLUMNS, CONTROLS, TITLES, UNITS, half_width
from mpp.type_hints import listed

CLEAR = 2.0
"""A difference of fewer standard errors is not clear."""
ADVICE = (
    "To try: a longer pre-training, more images of this kind (mpp report RUN shows whether the objective was learnt), "
    "{blocks}or fine-tuning (mpp finetune), which does not depend on frozen features."
)
MORE_IMAGES = "More test images would make the differences clearer."


class Comparison(NamedTuple):
    """An evaluator's score at the headline layer, against another score on the same test images."""

    evaluator: str
    """As a person calls it, with what was varied."""
    rival: str
    """The better control, or chance."""
    difference: float
    error: float
    """The standard error of the difference; both are accuracies in [0, 1]."""

    @property
    def standing(self) -> int:
        """1 clearly above, −1 clearly below, 0 neither."""
        is_clear = abs(self.difference) > CLEAR * self.error
        return 0 if not is_clear else 1 if self.difference > 0 else -1

    def __str__(self) -> str:
        side = "above" if self.difference >= 0 else "below"
        return f"{100 * abs(self.difference):.1f} ± {100 * self.error:.1f} {side} {self.rival}"


def standard_error(accuracy: float, images: int) -> float:
    """The standard error of an accuracy on so many images; Wilson's, which is not 0 where all or none are right."""
    return half_width(accuracy, images, z=1.0)


def comparisons(results: dict[str, Any]) -> list[list[Comparison]]:
    """For each evaluator the headline score against the better control, if there are controls, and against chance.

    Two features are tested on the same images, and mostly right on the same ones: the error of their difference is at
    most that of two independent samples, which is taken.
    """
    images, chance, found = results["test_images"], 1 / results["classes"], []
    for name, entry in results["scores"].items():
        score, varied = score_of(entry["headline"])
        title = f"{TITLES[name]}{varied and f', {varied}'}"
        error = standard_error(score, images)
        against = []
        rivals = {CONTROLS[control]: score_of(scored[name]["default"])[0]
                  for control, scored in results.get("controls", {}).items()}  # fmt: skip
        if rivals:
            rival = max(rivals, key=lambda control: rivals[control])
            both = math.hypot(error, standard_error(rivals[rival], images))
            against.append(Comparison(title, rival, score - rivals[rival], both))
        found.append([*against, Comparison(title, "chance", score - chance, error)])
    return found


def score_verdict(results: dict[str, Any]) -> list[str]:
    """A line for each evaluator, and a sentence: is the encoder above its controls and chance; if not, what to try."""
    found = comparisons(results)
    if not found:
        return []
    rival = "the better control and chance" if results.get("controls") else "chance"
    images = f"{results['test_images']:,} test images"
    lines = [f"Points above {rival} at the chosen layer, ± standard error ({images}):"]
    lines += [f"  {each[0].evaluator}: {', '.join(map(str, each))}" for each in found]
    return [*lines, *verdict_of(found, _advice(results))]


def verdict_of(found: list[list[Comparison]], advice: str) -> list[str]:
    """The last sentences: what the encoder is clearly above, what not, and what to try."""
    rivals = {"its controls": [each[0] for each in found if len(each) > 1], "chance": [each[-1] for each in found]}
    rivals = {rival: against for rival, against in rivals.items() if against}
    standings = {each.standing for against in rivals.values() for each in against}
    if standings == {1}:
        return [f"Verdict: the encoder is above {listed(rivals, 'and')}."]
    parts = []
    for standing, words in ((1, "above"), (0, "not clearly above"), (-1, "below")):
        for rival, against in rivals.items():
            names = [each.evaluator.split(",")[0] for each in against if each.standing == standing]
            if names:
                parts.append(f"{words} {rival}" + (f" by {listed(names, 'and')}" if len(names) < len(against) else ""))
    return [f"Verdict: the encoder is {'; '.join(parts)}.", advice + f" {MORE_IMAGES}" * (0 in standings)]


def _advice(results: dict[str, Any]) -> str:
    """What to try with an encoder that is not clearly above."""
    is_whole = results.get("recipe", {}).get("features", {}).get("blocks") == "all"
    return ADVICE.format(blocks="" if is_whole else "all blocks (features.blocks=all), ")


def filled(lines: list[str]) -> str:
    """The lines for the terminal."""
    return "\n".join(
        textwrap.fill(line, COLUMNS - 1, subsequent_indent="    " * line.startswith("  "), break_long_words=False,
                      break_on_hyphens=False)
        for line in lines
    )  # fmt: skip


def score_of(scored: dict[str, Any]) -> tuple[float, str]:
    """The accuracy that stands for an evaluator, and what it is of: most shots, the first k, or the probe's own."""
    if shots := scored.get("shots"):
        most = max(shots, key=int)
        return shots[most]["mean"], UNITS["shots"].format(most)
    if k := scored.get("k"):
        first = next(iter(k))
        return k[first], UNITS["k"].format(first)
    return scored["accuracy"], ""
