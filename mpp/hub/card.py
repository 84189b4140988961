"""The model card of a pre-trained encoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from mpp.files import write_text
from mpp.objective.settings import BaseObjectiveSettings

TEMPLATE = Path(__file__).with_name("card.md.j2")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says; everything in it was measured or set."""

    repo_id: str
    licence: str | None
    config: dict[str, Any]
    recipe: dict[str, Any]
    objective: BaseObjectiveSettings
    headline: str
    """The score that is compared with the baselines."""
    headline_title: str
    data: str
    rows: int
    step: int
    steps: int
    images: int
    flops: float
    hours: float
    hardware: str
    held_out: dict[str, Any]
    baselines: dict[str, float]
    evaluations: list[dict[str, Any]]
    """On one data set each, as `mpp.evaluate` writes them."""
    others: int
    """Results that are of another encoder: of other weights, another pool, image size, mean or std."""
    start: str | None
    """What the run began from, where it was not random weights."""
    pictures: list[str]


def write_card(facts: Facts, path: Path) -> None:
    """Write `README.md` with its metadata: licence, library, tags, and results as a `model-index`."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts, scores_of=scores_of, duration=duration
    )
    write_text(path, f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}")


def metadata(facts: Facts) -> ModelCardData:
    """What the Hub reads of the card."""
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^\w.-]+", "-", evaluation["data_name"]),  # the Hub takes nothing else
            dataset_name=evaluation["data_name"],
            dataset_split=evaluation["split"],
            metric_type="accuracy",
            metric_name=score.name,
            metric_value=round(100 * score.accuracy, 2),
            metric_args=score.protocol
            | {"train_images": evaluation["train_images"], "pool": facts.config["global_pool"]},
        )
        for evaluation in facts.evaluations
        for score in scores_of(evaluation)
    ]
    card = ModelCardData(
        license=facts.licence,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transformers", "mpp", *facts.objective.tags],
        base_model=facts.start if facts.start and is_hub_id(facts.start) else None,
        model_name=facts.repo_id.split("/")[-1] if results else None,  # the name of the results
        eval_results=results or None,
    )
    if not results:
        del card.model_name
    return card


class Score(NamedTuple):
    """A measured accuracy."""

    name: str
    accuracy: float
    """In [0, 1]."""
    std: float | None
    """Over the seeds, where there are several."""
    protocol: dict[str, Any]
    """How it was measured."""


def scores_of(evaluation: dict[str, Any]) -> list[Score]:
    """What was measured on the features of the last block, which are those that the published model gives."""
    scores, protocol = evaluation["scores"], evaluation["protocol"]
    found: list[Score] = []
    for shots, score in scores.get("few_shot", {}).get("default", {}).get("shots", {}).items():
        how = {"shots": int(shots), **{name: protocol["few_shot"][name] for name in ("seeds", "l2")}}
        found.append(Score(f"linear few-shot, {shots} a class", score["mean"], score["std"], how))
    if "knn" in scores:
        for k, value in scores["knn"]["default"]["k"].items():
            how = {"k": int(k), "temperature": protocol["knn"]["temperature"]}
            found.append(Score(f"{k} nearest neighbours", value, None, how))
    if "linear_probe" in scores:
        score = scores["linear_probe"]["default"]
        found.append(Score("linear probe", score["accuracy"], None, {"C": score["c"]}))
    return found


def is_hub_id(source: str) -> bool:
    """Whether this is `USER/NAME`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def duration(hours: float) -> str:
    """A length of time in the unit that suits it."""
    minutes = 60 * hours
    return f"{hours:.1f} hours" if hours >= 2 else f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} s"
