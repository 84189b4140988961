"""The page of a run: everything that its folder knows, in one HTML file with nothing outside it."""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2

import mpp
from mpp.commands.score_table import score_rows
from mpp.files import write_text
from mpp.recipe.yaml import in_block
from mpp.training.checkpoint import Checkpoints
from mpp.training.curves import curves, loss_curve, png, with_unit
from mpp.training.metrics_log import read_metrics

TEMPLATES = (Path(__file__).parent, Path(mpp.__file__).parent / "study" / "report")
CURVES = (
    ("Accuracy on corrupted patches", {"accuracy": "training", "validation/accuracy": "held out"}, "share right"),
    ("PSNR", {"psnr": "training", "validation/psnr": "held out"}, "dB"),
    ("Speed", {"images_per_second": "images a second"}, "images / s"),
    ("Learning rate", {"lr": "learning rate"}, "learning rate"),
    ("Norm of the gradient", {"gradient_norm": "norm of the gradient"}, "before clipping"),
)
"""The pictures besides the loss: title, values of the journal with their labels, title of the axis."""


def write_report(run: Path, path: Path) -> None:
    """Write the page.

    Raises:
        ValueError: if `run` is no run, or has not been saved yet.
    """
    metrics_path = run / "metrics.jsonl"
    if not metrics_path.is_file():
        raise ValueError(f"{run} is no run: it has no metrics.jsonl; give the output_dir of mpp pretrain or finetune")
    checkpoint = Checkpoints(run / "checkpoints", 2).newest()
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet; its first is written after checkpoint.every")
    state = checkpoint.state
    metrics = read_metrics(metrics_path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.html.j2").render(
        name=run.resolve().name,
        state={"unit": "", **state},
        facts=_facts(state, metrics),
        figures=_figures(state, metrics),
        pictures=_reconstructions(run, metrics),
        held_out=_held_out(state, metrics),
        evaluations=_evaluations(run),
        test=_read(run / "results.json"),
        recipe=in_block(state["recipe"]),
    )
    write_text(path, f"{text.strip()}\n")


def _facts(state: Mapping[str, Any], metrics: list[dict[str, Any]]) -> dict[str, str]:
    """What was run, on what, how fast."""
    recipe, progress = state["recipe"], state["progress"]
    images = progress["step"] * recipe["training"]["batch_size"]
    rates = [line["images_per_second"] for line in metrics if line.get("images_per_second")]
    shares = [line["share_of_peak"] for line in metrics if line.get("share_of_peak")]
    rows = state["data"]["rows"]
    facts = {
        "Encoder": recipe["encoder"]["source"] or recipe["encoder"]["name"],
        "Objective": recipe["objective"]["kind"].replace("_", " "),
        "Data": f"{recipe['data']['source']}, {rows:,} images of {recipe['data']['image_size']} px",
        "Length": f"{progress['step']:,} of {state['steps']:,} steps of {recipe['training']['batch_size']}: "
        f"{images:,} images seen, {images / rows:.1f} times each",
        "Time": f"{timedelta(seconds=round(progress['seconds']))} of training",
        "Machine": f"{state['hardware']}, {state['precision']}",
        "Compute": f"{images * state['flops_per_image']:.2g} floating-point operations",
    }
    if rates:
        facts["Speed"] = f"{statistics.median(rates):,.0f} images a second (median)"
        if shares:
            facts["Speed"] += f", {statistics.median(shares):.0%} of a large matrix product's rate on this machine"
    if progress["skipped"]:
        facts["Skipped"] = f"{progress['skipped']} steps whose loss or gradient was not finite"
    if progress["damaged"]:
        facts["Damaged"] = f"{len(progress['damaged'])} images cannot be decoded; a neighbour replaces each"
    return facts


def _figures(state: Mapping[str, Any], metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Title and picture, as a data URI, of each curve that the run has."""
    headline, title = state["headline"]
    title = with_unit(title, state.get("unit", ""))
    found = [("Loss", loss_curve(metrics, state["baselines"], headline=headline, title=title))]
    found += [(name, curves(metrics, values, axis)) for name, values, axis in CURVES]
    names = sorted({name for line in metrics for name in line if name.startswith("evaluation/")})
    if names:
        labels = {name: name.removeprefix("evaluation/") for name in names}
        found.append(("Frozen features during the run", curves(metrics, labels, "accuracy")))
    return [(name, _uri(png(figure))) for name, figure in found if figure is not None]


def _reconstructions(run: Path, metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The first and the last reconstructions, with their steps."""
    drawn = [(line["step"], run / line["reconstructions"]) for line in metrics if "reconstructions" in line]
    there = [(step, path) for step, path in drawn if path.is_file()]
    chosen = dict([*there[:1], *there[-1:]])
    return [(f"Step {step:,}", _uri(path.read_bytes())) for step, path in chosen.items()]


def _held_out(state: Mapping[str, Any], metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The headline on held-out images, and the baselines."""
    name = f"validation/{state['headline'][0]}"
    last = next((line[name] for line in reversed(metrics) if line.get(name) is not None), None)
    return {} if last is None else {"this run": last, **state["baselines"]}


def _evaluations(run: Path) -> list[dict[str, Any]]:
    """Each evaluation of the run's encoder, with its scores as rows."""
    found = [_read(path) for path in sorted(run.glob("evaluation/*/results.json"))]
    return [{"controls": {}, **results, "rows": score_rows(results)} for results in found if results is not None]


def _read(path: Path) -> dict[str, Any] | None:
    """JSON, None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
