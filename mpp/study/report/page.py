"""The report of a gap study: one HTML file with nothing outside it. Imports matplotlib and jinja2."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import yaml

from mpp.files import write_text
from mpp.study import claims, pilot
from mpp.study.report import figures, tables
from mpp.study.report.charts import looks_of
from mpp.study.report.figures import Figures
from mpp.study.report.pilot_tables import Pilot
from mpp.study.results import Row, read, select
from mpp.study.units import Variant


def write_page(results: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into the study's folder, from what `results.json` holds. Missing pictures are left out."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    arms, rows = results["arms"], read(results["rows"])
    looks = looks_of({name: arm["title"] for name, arm in arms.items()})
    tried = pilot.read(results["pilot"])
    swapped = sorted({False, *(row.variant.swapped for row in rows)})
    text = environment.get_template("page.html.j2").render(
        results=results,
        about=_about(rows),
        looks=looks,
        tables=tables,
        judged=claims,
        axes=figures.AXES,
        exploratory=partial(_exploratory, results["claims"]),
        primary=[claim for claim in results["claims"] if claim["primary"]],
        pilot=Pilot(results, tried),
        total=tables.total_cost(rows, tried),
        directions=[Figures(looks, arms, rows, swapped=each) for each in swapped],
        costs=tables.cost_table(rows, arms, tried, "Images, operations and core time, means over the seeds"),
        pictures=_pictures(results, folder),
        recipe=yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True),
    )
    path = folder / "report.html"
    write_text(path, f"{text.strip()}\n")
    return path


def _exploratory(claims: Sequence[dict[str, Any]], direction: Figures) -> dict[str, list[dict[str, Any]]]:
    """The exploratory claims of a direction by the axis of their variant, `none` or `crossed`."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for claim in claims:
        if not claim["primary"] and claim["swapped"] == direction.swapped:
            departs = figures.axes_of(Variant(**{name: claim[name] for name in Variant._fields}))
            found["crossed" if len(departs) > 1 else departs[0] if departs else "none"].append(claim)
    return found


def _pictures(results: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """The first reconstructions of each arm that has any: its title, and the picture as a data URI."""
    found: dict[str, str] = {}
    for unit in results["units"]:
        path = unit["reconstructions"]
        if unit["arm"] not in found and path and (folder / path).is_file():
            found[unit["arm"]] = base64.b64encode((folder / path).read_bytes()).decode("ascii")
    return [(results["arms"][arm]["title"], f"data:image/png;base64,{data}") for arm, data in found.items()]


def _about(rows: Sequence[Row]) -> dict[str, int | None]:
    """The sizes of the data and of pre-training, for the opening paragraph; None for what is not known."""
    own = [row for row in rows if row.variant == Variant() and row.evaluator in ("pretrain", "evaluate")]
    names = ("rows", "images_seen", "train_images", "test_images", "classes")
    found = {name: [row.value for row in select(own, metric=name)] for name in names}
    return {name: int(max(values)) if values else None for name, values in found.items()}
