"""The report of a gap study: one HTML file with nothing outside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mpp.files import write_text
from mpp.study.arms import MPP
from mpp.study.report import series, tables
from mpp.study.report.series import Unit, Variant
from mpp.study.report.tables import DEFAULT, Table

if TYPE_CHECKING:
    from mpp.study.report.figures import Figures, Group


@dataclass(frozen=True)
class Axis:
    """What changes with the number of pre-training images, or with the size of the model."""

    name: str
    title: str
    figure: Group | None
    more: Group | None
    table: Table | None
    claims: Table | None


@dataclass(frozen=True)
class Picture:
    """A reconstruction, embedded."""

    title: str
    source: str


@dataclass(frozen=True)
class Direction:
    """Everything about one way from upstream to downstream."""

    name: str
    """What the ids of its sections begin with; empty for the study's own way."""
    chance: float | None
    accuracies: Table | None
    defaults: Table | None
    places: Table | None
    penalties: Table | None
    by_labels: Group | None
    forest: Group | None
    claims: Table | None
    losses: Group | None
    in_training: Group | None
    in_training_more: Group | None
    compute: Group | None
    tuning: Group | None
    spent: Group | None
    depth: Group | None
    axes: Sequence[Axis]
    pictures: Sequence[Picture]


def write_page(results: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into the study's folder.

    Args:
        results: from `summarize`, with the `recipe` and the units that are `unfinished`.
        folder: of the study; pictures that it does not hold are left out.

    Raises:
        RuntimeError: if jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2

        from mpp.study.report.figures import Figures
    except ImportError as error:
        raise RuntimeError(f'the report needs {error.name}: pip install "mpp[study]"') from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles, recipe = results["titles"], results.get("recipe") or {}
    figures = Figures(titles)
    units = sorted(results["units"], key=lambda unit: unit["seed"])
    ways = [way for way in (False, True) if not way or any(Variant.of_unit(unit).back for unit in units)]
    text = environment.get_template("page.html.j2").render(
        title="How far is masked patch prediction from supervised pre-training?",
        about=_about(recipe, units),
        unfinished=results.get("unfinished") or [],
        note=results.get("note", ""),
        answers=tables.answers(results["claims"], titles),
        directions=[_direction(results, units, figures, folder, back=way) for way in ways],
        costs=_costs(units, titles),
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
        looks=_looks(),
    )
    path = folder / "report.html"
    write_text(path, f"{text.strip()}\n")
    return path


def _costs(units: Sequence[Unit], titles: Mapping[str, str]) -> list[Table | None]:
    """Of the study itself, and of its variants."""
    own = [unit for unit in units if Variant.of_unit(unit) == Variant()]
    others = [unit for unit in units if Variant.of_unit(unit) != Variant()]
    label = "Images, operations and time, means over the seeds"
    return [tables.costs(own, titles, label), tables.costs(others, titles, f"{label}: variants")]


def _looks() -> list[Any]:
    from mpp.study.report.palette import LOOKS, OTHER

    return [*LOOKS.values(), OTHER]


def _direction(
    results: dict[str, Any], every: Sequence[Unit], figures: Figures, folder: Path, *, back: bool
) -> Direction:
    titles, own = results["titles"], Variant(back)
    found = {Variant.of_table(table["variant"]): table for table in results["tables"]}
    table = found.get(own, {"variant": "", "metrics": [], "arms": {}})
    units = [unit for unit in every if Variant.of_unit(unit) == own]
    claims = [claim for claim in results["claims"] if Variant.of_table(claim["variant"]) == own]
    chance = series.chance(units)
    names = series.look_names(units)
    first = _first_of_each_kind(names)
    label = "Accuracy on the downstream test images, per cent"
    elsewhere = f"{label}: last block, the encoder's own pooling"
    return Direction(
        name="back-" if back else "",
        chance=chance,
        accuracies=tables.accuracies([("", table)], titles, label),
        defaults=tables.accuracies([("", table)], titles, elsewhere, default=True),
        places=tables.places(units, titles),
        penalties=tables.penalties(units, titles),
        by_labels=figures.by_labels(table, chance),
        forest=figures.forest(claims),
        claims=tables.claims_table(claims, titles, "All claims, with paired 95 % intervals"),
        losses=figures.losses(units),
        in_training=figures.in_training(units, first),
        in_training_more=figures.in_training(units, [name for name in names if name not in first]),
        compute=figures.in_training(units, names, compute=True),
        tuning=figures.tuning(units, chance),
        spent=figures.spent(units, chance),
        depth=figures.depth(units, chance),
        axes=_axes(results, every, found, figures, back=back),
        pictures=_pictures(units, titles, folder),
    )


def _first_of_each_kind(names: Sequence[str]) -> list[str]:
    """Few-shot with the first number of shots, neighbours with the first k: each with all its poolings."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(series.look_kind(name)[0], series.look_kind(name)[1])
    return [name for name in names if first[series.look_kind(name)[0]] == series.look_kind(name)[1]]


def _axes(
    results: dict[str, Any],
    units: Sequence[Unit],
    found: Mapping[Variant, dict[str, Any]],
    figures: Figures,
    *,
    back: bool,
) -> list[Axis]:
    """Accuracy by number of pre-training images, and by size of the model, where the study has them."""
    own = Variant(back)
    rows = [(u.get("pretraining") or {}).get("rows") for u in units if Variant.of_unit(u) == own]
    everything = next((count for count in rows if count), None)
    images = sorted(v for v in found if v.back == back and v.images and not v.size)
    sizes = [v for v in found if v.back == back and v.size and not v.images]
    axes = []
    if images:
        named = [(f"{v.images:,} pre-training images", float(v.images or 0), v) for v in images]
        if everything and own in found:
            named.append((f"all {everything:,} pre-training images", float(everything), own))
        axes.append(_axis("images", "By number of pre-training images", named, (), results, units, found, figures))
    if sizes:
        ordered = _by_cost([own, *sizes] if own in found else sizes, units)
        named = [(v.size or "as in the recipe", float(place), v) for place, v in enumerate(ordered)]
        categories = [name for name, _, _ in named]
        axes.append(_axis("sizes", "By size of the model", named, categories, results, units, found, figures))
    return axes


def _by_cost(variants: Sequence[Variant], units: Sequence[Unit]) -> list[Variant]:
    """Variants by the operations that an image costs, in their own order where that is not known of all."""
    cost = {
        variant: series.mean(
            (unit.get("pretraining") or {}).get("flops_per_image")
            for unit in units
            if Variant.of_unit(unit) == variant and unit["arm"] in MPP
        )
        for variant in variants
    }
    known = all(value is not None for value in cost.values())
    return sorted(variants, key=lambda variant: cost[variant] or 0.0) if known else list(variants)


def _axis(
    name: str,
    title: str,
    named: Sequence[tuple[str, float, Variant]],
    categories: Sequence[str],
    results: dict[str, Any],
    units: Sequence[Unit],
    found: Mapping[Variant, dict[str, Any]],
    figures: Figures,
) -> Axis:
    back = named[0][2].back
    variants = {variant for _, _, variant in named}
    arms = {arm for variant in variants - {Variant(back)} for arm in found[variant]["arms"]}
    shown = {
        place: {**found[variant], "arms": {arm: cells for arm, cells in found[variant]["arms"].items() if arm in arms}}
        for _, place, variant in named
    }
    metrics = list(dict.fromkeys(m for t in shown.values() for m in t["metrics"] if not m.endswith(DEFAULT)))
    few = [metric for metric in metrics if metric.endswith("-shot")]
    first = [metric for metric in metrics if metric not in few[:-1]][:4]  # the most shots, kNN, the probe, fine-tuned
    chance = series.chance(unit for unit in units if Variant.of_unit(unit) in variants)
    x = "size of the encoder" if categories else "pre-training images"
    claims = [c for c in results["claims"] if (v := Variant.of_table(c["variant"])) in variants and v != Variant(back)]
    return Axis(
        name,
        title,
        figures.axis(shown, first, chance, x, categories),
        figures.axis(shown, [metric for metric in metrics if metric not in first], chance, x, categories),
        tables.accuracies(
            [(heading, shown[place]) for heading, place, _ in named], results["titles"], f"{title}, per cent"
        ),
        tables.claims_table(claims, results["titles"], f"{title}: claims"),
    )


def _pictures(units: Sequence[Unit], titles: Mapping[str, str], folder: Path) -> list[Picture]:
    """The first seed's reconstructions of each arm that predicts masked patches."""
    found: list[Picture] = []
    for arm in MPP:
        paths = [(u.get("pretraining") or {}).get("reconstructions") for u in units if u["arm"] == arm]
        if paths and paths[0] and (folder / paths[0]).is_file():
            data = base64.b64encode((folder / paths[0]).read_bytes()).decode("ascii")
            found.append(Picture(titles.get(arm, arm), f"data:image/png;base64,{data}"))
    return found


def _searched(recipe: dict[str, Any]) -> list[str]:
    """What fine-tuning searched, in words."""
    search = (recipe.get("finetuning") or {}).get("search") or {}
    named = {"lr": "the learning rate of fine-tuning", "pool": "the pooling of fine-tuning"}
    return [words for setting, words in named.items() if search.get(setting)]


def _about(recipe: dict[str, Any], units: Sequence[Unit]) -> dict[str, Any]:
    """The facts of the opening paragraph; None for what is not known."""
    own = [unit for unit in units if Variant.of_unit(unit) == Variant()]
    before = [unit["pretraining"] for unit in own if unit.get("pretraining")]
    after = [unit["evaluation"] for unit in own if unit.get("evaluation")]
    encoder, upstream, downstream = (recipe.get(part) or {} for part in ("encoder", "upstream", "downstream"))
    details = [f"patch size {encoder['patch_size']}"] if encoder.get("patch_size") else []
    details += [f"{name.replace('_', ' ')} {value}" for name, value in (encoder.get("arguments") or {}).items()]
    seen, rows = ({part.get(name) for part in before} - {None} for name in ("images_seen", "rows"))
    return {
        "encoder": encoder.get("name"),
        "details": ", ".join(details),
        "upstream": upstream.get("source"),
        "downstream": downstream.get("source"),
        "sizes": [part["image_size"] for part in (upstream, downstream) if part.get("image_size")],
        "seen": max(seen, default=None),
        "rows": max(rows, default=None),
        "train": after[0].get("train_images") if after else None,
        "test": after[0].get("test_images") if after else None,
        "classes": after[0].get("classes") if after else None,
        "seeds": sorted({unit["seed"] for unit in units}),
        "units": len(units),
        "dev": (recipe.get("finetuning") or {}).get("dev"),
        "searched": _searched(recipe),
    }
