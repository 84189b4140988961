"""The page of a run: everything that its folder knows, in one HTML file with nothing outside it."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

import mpp
from mpp.commands.classifier_test import ClassifierTest, classifier_test
from mpp.commands.evaluations import evaluate_command, evaluations_in, read, shown
from mpp.commands.resumptions import Resumption, extensions, resumptions, stops
from mpp.commands.score_verdict import standard_error
from mpp.data.inventory import counted
from mpp.files import write_text
from mpp.recipe.yaml import in_block
from mpp.training.checkpoint import Checkpoints
from mpp.training.curves import curves, loss_curve, png, with_unit
from mpp.training.metrics_log import read_metrics
from mpp.type_hints import listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT, DEV = "held out", "dev split"
"""What the validation images of a pre-training and those of a fine-tuning are called."""
TEMPLATES = (Path(__file__).parent, Path(mpp.__file__).parent / "study" / "report")
CURVES = (
    ("Accuracy", {"accuracy": "training", "validation/accuracy": HELD_OUT}, "share right"),
    ("PSNR", {"psnr": "training", "validation/psnr": HELD_OUT}, "dB"),
    ("Speed", {"images_per_second": "images a second"}, "images / s"),
    ("Learning rate", {"lr": "learning rate"}, "learning rate"),
    ("Norm of the gradient", {"gradient_norm": "norm of the gradient"}, "before clipping"),
)
"""The pictures besides the loss: title, values of the journal with their labels, title of the axis."""
BASELINES = {
    "histogram": "the label frequencies",
    "neighbours": "what the colours around tell",
    "chance": "equal odds",
}
"""The baselines in a sentence."""
FEWEST_DIGITS = 0.1
"""Smaller differences are shown with two digits that count, and not with two decimals."""
NAMED = 5
"""Damaged images that are named; the others are counted."""


def write_report(run: Path, path: Path) -> None:
    """Write the page.

    Raises:
        ValueError: if `run` is no run, or has not been saved yet.
    """
    metrics_path = run / "metrics.jsonl"
    if not metrics_path.is_file():
        _write_other(run, path)
        return
    checkpoint = Checkpoints(run / "checkpoints", 2).newest()
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet; its first is written after checkpoint.every")
    state = checkpoint.state
    metrics = read_metrics(metrics_path)
    evaluations, test = evaluations_in(run), read(run / "results.json")
    command, is_whole = ("", False)
    if test is None and not any(each["is_current"] for each in evaluations):
        command, is_whole = evaluate_command(_as_given(run), state, evaluations[0] if evaluations else None)
    classified = classifier_test(run, test) if test else None
    text = _template("report.html.j2").render(
        name=run.resolve().name,
        state={"unit": "", **state},
        unfinished=unfinished(state),
        verdict="" if test else verdict(state, metrics),
        facts=_facts(state, metrics, resumptions(run)),
        figures=_figures(state, metrics, classified),
        pictures=_reconstructions(run, metrics),
        held_out=_losses_of(classified, test, metrics) if test else _held_out(state, metrics),
        validated_on=validated_on(state),
        evaluations=evaluations,
        command=command,
        is_whole=is_whole,
        test=test,
        classified=classified,
        test_error=100 * standard_error(test["test"]["accuracy"], test["test"]["images"]) if test else 0.0,
        recipe=in_block(_with_meaning(state["recipe"])),
    )
    write_text(path, f"{text.strip()}\n")


def _with_meaning(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without `encoder.pretrained` where there is no source: it decides nothing there, and misleads."""
    encoder = dict(recipe["encoder"])
    if encoder.get("source") is None:
        encoder.pop("pretrained", None)
    return {**recipe, "encoder": encoder}


def _write_other(folder: Path, path: Path) -> None:
    """The page of an evaluation; a study writes its own.

    Raises:
        ValueError: for a folder of anything else, saying where the page is or which folder to give.
    """
    results = read(folder / "results.json") or {}
    if "rows" in results:
        raise ValueError(f"{folder} is a study, whose page mpp gap has written: {folder / 'report.html'}")
    if "scores" not in results:
        raise ValueError(
            f"{folder} is no run: it has no metrics.jsonl; give the output_dir of mpp pretrain, finetune or evaluate"
        )
    text = _template("evaluation.html.j2").render(evaluation=shown(results), recipe=in_block(results["recipe"]))
    write_text(path, f"{text.strip()}\n")


def _template(name: str) -> jinja2.Template:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    ).get_template(name)  # fmt: skip


def _as_given(run: Path) -> Path:
    """The folder as a command names it: below the present folder without the folders above."""
    whole = run.resolve()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole


def verdict(state: Mapping[str, Any], metrics: list[dict[str, Any]]) -> str:
    """Whether the objective was learnt, in a sentence: the last validation against the baselines; empty without one."""
    found = _held_out(state, metrics)
    if not found:
        return ""
    loss, unit = found.pop("this run"), state.get("unit", "")
    names = BASELINES | ({} if unit == "nats" else {"histogram": "the mean training patch"})
    against = [
        f"{_amount(abs(value - loss))} {'below' if loss < value else 'above'} {names.get(name, name)} ({value:.3f})"
        for name, value in sorted(found.items(), key=lambda item: item[1])
    ]
    where = "Held out" if validated_on(state) == HELD_OUT else "On the dev split"
    text = f"{where}, the {state['headline'][1]} is {loss:.3f} {unit}".rstrip()
    if not against:
        return f"{text}."
    ahead = [names.get(name, name) for name, value in found.items() if loss >= value]
    learnt = f"not learnt yet, as it does not beat {listed(ahead, 'and')}" if ahead else "learnt"
    return f"{text}: {listed(against, 'and')}. The objective was {learnt}."


def validated_on(state: Mapping[str, Any]) -> str:
    """What the validation images of a run are called: a fine-tuning holds the test split out, and not those."""
    return DEV if state.get("recipe", {}).get("command") == "finetune" else HELD_OUT


def _amount(value: float) -> str:
    return f"{value:.2f}" if value >= FEWEST_DIGITS else f"{value:.2g}"


def unfinished(state: Mapping[str, Any]) -> str:
    """Where a run is that has not reached its last step, or that it was stopped early; empty for any other."""
    step, steps = state["progress"]["step"], state["steps"]
    if step >= steps:
        return ""
    if state["progress"].get("ended", False):
        best = state["progress"].get("best_step", 0)
        return (f"Early stopping has ended the run at step {step:,} of {steps:,}: the dev split had not improved since "
                f"step {best:,}, whose weights are the result.")  # fmt: skip
    return f"The run is not finished: its last checkpoint is of step {step:,} of {steps:,}."


def _damaged(metrics: list[dict[str, Any]]) -> str:
    """The images that cannot be decoded, the first of them by name."""
    there = {str(each["where"]) for line in metrics for kind in ("damaged_images", "validation/damaged_images")
             for each in line.get(kind) or []}  # fmt: skip
    if not there:
        return ""
    named = sorted(there)[:NAMED]
    more = f" and {len(there) - NAMED:,} more" if len(there) > NAMED else ""
    return f"{counted(len(there), 'image')} could not be decoded, replaced by neighbours: {', '.join(named)}{more}"


def _facts(state: Mapping[str, Any], metrics: list[dict[str, Any]], resumed: list[Resumption]) -> dict[str, str]:
    """What was run, on what, how fast; what it took comes last."""
    recipe, progress = state["recipe"], state["progress"]
    images = progress["step"] * recipe["training"]["batch_size"]
    rates = [line["images_per_second"] for line in metrics if line.get("images_per_second")]
    shares = [line["share_of_peak"] for line in metrics if line.get("share_of_peak")]
    rows = state["data"]["rows"]
    speed = f", {statistics.median(rates):,.0f} images a second (median)" if rates else ""
    skipped = progress["skipped"]
    compute = f"{images * state['flops_per_image']:.2g} floating-point operations"
    if shares:
        compute += f", at {statistics.median(shares):.0%} of the rate of a large matrix product on this machine"
    facts = {
        "Data": f"{recipe['data']['source']}, {counted(rows, 'training image')} of {recipe['data']['image_size']} px",
        "Objective": recipe["objective"]["kind"].replace("_", " "),
        "Encoder": recipe["encoder"]["source"] or recipe["encoder"]["name"],
        "Length": f"{progress['step']:,} of {counted(state['steps'], 'step')} of "
        f"{counted(recipe['training']['batch_size'], 'image')}: {counted(images, 'image')} seen, {images / rows:.1f} "
        "times each",
        "Extension": extensions(resumed),
        "Stops": stops(resumed, metrics),
        "Damaged": _damaged(metrics),
        "Skipped": f"{counted(skipped, 'step')} whose loss or gradient was not finite" if skipped else "",
        "Time": f"{timedelta(seconds=round(progress['seconds']))} of training{speed}",
        "Machine": f"{state['hardware']}, {state['precision']}",
        "Compute": compute,
    }
    return {title: fact for title, fact in facts.items() if fact}


def _figures(
    state: Mapping[str, Any], metrics: list[dict[str, Any]], classified: ClassifierTest | None
) -> list[tuple[str, str]]:
    """Title and picture, as a data URI, of each curve that the run has."""
    headline, title = state["headline"]
    title, held_out = with_unit(title, state.get("unit", "")), validated_on(state)
    levels = state["baselines"] if classified is None else {"chance": classified.chance_loss}
    loss = loss_curve(metrics, levels, headline=headline, title=title, held_out=held_out)
    found: list[tuple[str, Figure | None]] = [("Loss", loss)]
    for name, values, axis in CURVES:
        labels = {value: held_out if label == HELD_OUT else label for value, label in values.items()}
        is_of_patches = name == "Accuracy" and headline != "loss"
        found.append((name + " on corrupted patches" * is_of_patches, curves(metrics, labels, axis)))
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


def _losses_of(
    classified: ClassifierTest | None, test: dict[str, Any], metrics: list[dict[str, Any]]
) -> dict[str, float]:
    """The loss of a finished fine-tuning on the test split and on the dev split, by the same weights; and chance."""
    best = test.get("best_on_dev") or {}
    dev = [line for line in metrics if line.get("validation/loss") is not None]
    found = {"test split": test["test"]["loss"]}
    if dev:
        weights = next((line for line in dev if line["step"] == best.get("step")), dev[-1])
        found[DEV] = weights["validation/loss"]
    return found | ({"chance": classified.chance_loss} if classified else {})


def _uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
