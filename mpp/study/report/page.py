"""The report of a gap study: one HTML file with nothing outside it. Imports matplotlib and jinja2."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from mpp.files import write_text
from mpp.study.claims import variant_title
from mpp.study.report import tables
from mpp.study.report.charts import Image, Looks, looks_of
from mpp.study.report.figures import Figures
from mpp.study.results import Row, accuracies, read, select
from mpp.study.units import Variant


class Axis(NamedTuple):
    """How accuracy depends on the number of pre-training images, or on the size of the encoder."""

    title: str
    figure: Image | None
    accuracies: tables.Table | None
    claims: tables.Table | None


class Direction:
    """The rows and claims of one direction; of the study's own encoder and all images, but for `axes`."""

    def __init__(self, results: Mapping[str, Any], rows: Sequence[Row], looks: Looks, *, swapped: bool) -> None:
        self.variant, self.every, self.looks, self.arms = Variant(swapped), rows, looks, results["arms"]
        self.swapped, self._claims = swapped, results["claims"]
        self.rows, self.claims = select(rows, variant=self.variant), self._claims_of(self.variant)
        self.cells = accuracies(rows, self.variant)
        self.figures = Figures(looks, self.arms, self.rows)

    def _claims_of(self, *variants: Variant) -> list[dict[str, Any]]:
        return [c for c in self._claims if Variant(c["swapped"], c["images"], c["size"]) in variants]

    def axes(self) -> list[Axis]:
        """By number of pre-training images, and by size of the model, where the study has them."""
        found = (
            self._axis("images", "rows", "By number of pre-training images", "pre-training images"),
            self._axis("size", "flops_per_image", "By size of the model", "size of the encoder"),
        )
        return [axis for axis in found if axis is not None]

    def _axis(self, name: str, metric: str, title: str, label: str) -> Axis | None:
        """The arms that have variants on an axis, which are in the order of a metric of pre-training."""
        variants = [v for v in dict.fromkeys(row.variant for row in self.every) if v.swapped == self.swapped]
        others = [variant for variant in variants if getattr(variant, name) is not None]
        if not others:
            return None
        values = {
            variant: max((row.value for row in select(self.every, variant=variant, metric=metric)), default=0.0)
            for variant in variants
            if variant in (*others, self.variant)
        }
        shown = sorted(values, key=lambda variant: values[variant])
        named = name == "size"
        positions = {variant: float(rank) for rank, variant in enumerate(shown)} if named else values
        varied = {row.arm for row in self.every if row.variant in others}
        rows = [row for row in self.every if row.variant in shown and row.arm in varied]
        names = [variant_title(variant) or "as in the recipe" for variant in shown]
        return Axis(
            title,
            Figures(self.looks, self.arms, rows).axis(label, positions, names if named else ()),
            tables.accuracy_table(
                [(n, accuracies(rows, v)) for n, v in zip(names, shown, strict=True)], self.arms, f"{title}, per cent"
            ),
            tables.claims_table(self._claims_of(*others), self.arms, f"{title}: claims"),
        )


def write_page(results: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into the study's folder.

    Args:
        results: what `results.json` holds.
        folder: of the study; pictures that it does not hold are left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    rows = read(results["rows"])
    looks = looks_of({name: arm["title"] for name, arm in results["arms"].items()})
    swapped = sorted({False, *(row.variant.swapped for row in rows)})
    text = environment.get_template("page.html.j2").render(
        results=results,
        arms=results["arms"],
        about=_about(rows),
        looks=looks,
        tables=tables,
        directions=[Direction(results, rows, looks, swapped=each) for each in swapped],
        costs=tables.cost_table(rows, results["arms"], "Images, operations and time, means over the seeds"),
        pictures=_pictures(results, folder),
        recipe=yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True),
    )
    path = folder / "report.html"
    write_text(path, f"{text.strip()}\n")
    return path


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
