"""The verdict below the table of scores: signs, errors, and no certainty from few images."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mpp.commands.score_verdict import comparisons, filled, score_verdict, standard_error


def results(
    encoder: float, pixels: float | None, colours: float | None, test: int = 2000, default: float = 0.0
) -> dict[str, Any]:
    """Of an encoder whose chosen layer is right on the share `encoder`, and whose default layer on another."""

    def entries(accuracy: float) -> dict[str, Any]:
        return {
            "few_shot": {"block": 4, "pool": "avg", "shots": {"5": {"mean": accuracy, "std": 0.01},
                                                              "25": {"mean": accuracy + 0.001, "std": 0.01}}},
            "knn": {"block": 4, "pool": "avg", "k": {"20": accuracy, "10": 0.9}},
            "linear_probe": {"block": 4, "pool": "avg", "c": 0.1, "accuracy": accuracy},
        }  # fmt: skip

    low, high = entries(default), entries(encoder)
    controls = {
        name: {key: {"default": entry} for key, entry in entries(accuracy).items()}
        for name, accuracy in (("raw_pixels", pixels), ("patch_colors", colours))
        if accuracy is not None
    }
    return {"scores": {name: {"default": low[name], "headline": high[name]} for name in high}, "controls": controls,
            "classes": 10, "test_images": test, "train_images": 5000}  # fmt: skip


def test_the_chosen_layer_is_compared_with_the_better_control_and_with_chance():
    few_shot, knn, probe = comparisons(results(0.5, 0.3, 0.4))
    assert [each.evaluator for each in (few_shot[0], knn[0], probe[0])] == [
        "linear few-shot, 25 a class", "kNN, k = 20", "linear probe"]  # fmt: skip
    for against in (few_shot, knn, probe):
        assert [each.rival for each in against] == ["colours", "chance"]
        assert against[0].difference == pytest.approx(0.1)
    assert knn[1].difference == pytest.approx(0.4)
    assert comparisons(results(0.5, 0.45, 0.4))[1][0].rival == "pixels"
    assert [[each.rival for each in against] for against in comparisons(results(0.5, None, None))] == [["chance"]] * 3


def test_errors_are_binomial_and_those_of_a_difference_are_of_both():
    assert standard_error(0.5, 2000) == pytest.approx(math.sqrt(0.25 / 2000), rel=1e-3)
    assert standard_error(0.1, 10_000) == pytest.approx(math.sqrt(0.09 / 10_000), rel=1e-3)
    assert standard_error(1.0, 40) > 0.01, "all of 40 right is not certain"
    against, chance = comparisons(results(0.5, 0.3, 0.4))[1]
    assert chance.error == standard_error(0.5, 2000)
    assert against.error == pytest.approx(math.hypot(standard_error(0.5, 2000), standard_error(0.4, 2000)))


@pytest.mark.parametrize(
    ("scores", "said", "advised"),
    [
        (results(0.5, 0.3, 0.4), "Verdict: the encoder is above its controls and chance.", False),
        (results(0.5, None, None), "Verdict: the encoder is above chance.", False),
        (results(0.5, 0.3, 0.4, test=40), "is above chance; not clearly above its controls.", True),
        (results(0.4, 0.3, 0.5), "is above chance; below its controls.", True),
        (results(0.41, 0.3, 0.4), "is above chance; not clearly above its controls.", True),
        (results(0.1, None, None), "is not clearly above chance.", True),
    ],
)  # fmt: skip
def test_the_last_sentence_says_what_is_clear_and_advises_only_where_it_is_not(
    scores: dict[str, Any], said: str, advised: bool
):
    text = " ".join(score_verdict(scores))
    assert said in text
    assert ("To try: a longer pre-training" in text) == advised
    assert ("features.blocks=all" in text) == advised
    blocks = scores | {"recipe": {"features": {"blocks": "all"}}}
    assert "features.blocks" not in " ".join(score_verdict(blocks)), "that was done"
    assert max(map(len, filled(score_verdict(scores)).splitlines())) < 80


def test_an_encoder_above_its_controls_by_one_evaluator_alone_is_not_praised_for_all():
    scores = results(0.5, 0.3, 0.4)
    scores["controls"]["patch_colors"]["knn"]["default"]["k"]["20"] = 0.6
    text = " ".join(score_verdict(scores))
    assert "is above its controls by linear few-shot and linear probe; above chance; below its controls by kNN." in text
    assert "kNN, k = 20: 10.0 ± 1.6 below colours, 40.0 ± 1.1 above chance" in text
