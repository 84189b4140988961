"""The model card of a pre-trained encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mpp.files import write_text

TEMPLATE = Path(__file__).with_name("card.md.j2")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says; everything in it was measured or set."""

    repo_id: str
    licence: str | None
    config: dict[str, Any]
    recipe: dict[str, Any]
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
    pictures: list[str]


def write_card(facts: Facts, path: Path) -> None:
    """Write `README.md` with its metadata: licence, library, tags, and results as a `model-index`.

    Raises:
        RuntimeError: if Jinja is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise RuntimeError('the model card needs Jinja: pip install "mpp[study]"') from error
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(facts=facts, scores_of=scores_of)
    write_text(path, f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}")


def metadata(facts: Facts) -> ModelCardData:
    """What the Hub reads of the card."""
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=evaluation["data_name"],
            dataset_name=evaluation["data_name"],
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(100 * value, 2),
        )
        for evaluation in facts.evaluations
        for name, value, _ in scores_of(evaluation)
    ]
    return ModelCardData(
        license=facts.licence,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transformers", "mpp", "masked-patch-prediction", "self-supervised"],
        model_name=facts.repo_id.split("/")[-1],
        eval_results=results or None,
    )


def scores_of(evaluation: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Name, accuracy in [0, 1] and standard deviation of what was measured on the features of the last block."""
    scores = evaluation["scores"]
    found: list[tuple[str, float, float | None]] = []
    for shots, score in scores.get("few_shot", {}).get("default", {}).get("shots", {}).items():
        found.append((f"linear few-shot, {shots} a class", score["mean"], score["std"]))
    if "knn" in scores:
        found += [(f"{k} nearest neighbours", value, None) for k, value in scores["knn"]["default"]["k"].items()]
    if "linear_probe" in scores:
        found.append(("linear probe", scores["linear_probe"]["default"]["accuracy"], None))
    return found
