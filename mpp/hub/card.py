"""The model card of a pre-trained encoder, or of a classifier."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mpp.commands.score_verdict import standard_error
from mpp.extras import DISTRIBUTION
from mpp.files import write_text
from mpp.objective.settings import BaseObjectiveSettings

SHOWN = 30
"""Class names that a card lists at most."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says; everything in it was measured or set."""

    repo_id: str
    licence: str | None
    config: dict[str, Any]
    recipe: dict[str, Any]
    objective: BaseObjectiveSettings
    data: str
    rows: int
    step: int
    steps: int
    images: int
    flops: float
    hours: float
    hardware: str
    start: str | None
    """What the run began from, where it was not random weights."""
    pictures: list[str]
    results: dict[str, Any] | None = None
    """Of a classifier, as `mpp.finetune` writes them; None of an encoder, whose card has what follows."""
    headline: str = "loss"
    """The score that is compared with the baselines."""
    headline_title: str = "loss"
    held_out: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """On one data set each, as `mpp.evaluate` writes them."""
    others: int = 0
    """Results that are of another encoder: of other weights, another pool, image size, mean or std."""


def write_card(facts: Facts, path: Path) -> None:
    """Write `README.md` with its metadata: licence, library, tags, and results as a `model-index`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False,
    )  # fmt: skip
    template = environment.get_template("card.md.j2" if facts.results is None else "classifier_card.md.j2")
    body = template.render(facts=facts, scores_of=scores_of, duration=duration, shown=SHOWN, distribution=DISTRIBUTION,
                           standard_error=standard_error)  # fmt: skip
    write_text(path, f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}")


def metadata(facts: Facts) -> ModelCardData:
    """What the Hub reads of the card."""
    pool = {"pool": facts.config["global_pool"]}
    results = [
        _result(
            evaluation["data_name"],
            evaluation["split"],
            score.name,
            score.accuracy,
            score.protocol | {"train_images": evaluation["train_images"]} | pool,
        )
        for evaluation in facts.evaluations
        for score in scores_of(evaluation)
    ]
    if facts.results is not None:
        accuracy, train = facts.results["test"]["accuracy"], {"train_images": facts.results["train_images"]}
        results.append(_result(facts.data, "test", "accuracy", accuracy, train | pool))
    tags = facts.objective.tags if facts.results is None else ("image-classification",)
    card = ModelCardData(
        license=facts.licence,
        library_name="timm",
        pipeline_tag="image-feature-extraction" if facts.results is None else "image-classification",
        tags=["timm", "transformers", "mpp", *tags],
        base_model=facts.start if facts.start and is_hub_id(facts.start) else None,
        model_name=facts.repo_id.split("/")[-1] if results else None,  # the name of the results
        eval_results=results or None,
    )
    if not results:
        del card.model_name
    return card


def _result(data: str, split: str, name: str, accuracy: float, protocol: dict[str, Any]) -> EvalResult:
    """An accuracy as the Hub lists it."""
    return EvalResult(
        task_type="image-classification",
        dataset_type=re.sub(r"[^\w.-]+", "-", data),  # the Hub takes nothing else
        dataset_name=data,
        dataset_split=split,
        metric_type="accuracy",
        metric_name=name,
        metric_value=round(100 * accuracy, 2),
        metric_args=protocol,
    )


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
