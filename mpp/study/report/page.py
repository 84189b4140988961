"""The report of a gap study: one HTML file with nothing outside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mpp.files import write_text
from mpp.study.results import Cells, Row, accuracies, read, select
from mpp.study.units import Variant

if TYPE_CHECKING:
    from mpp.study.report.charts import Charts
    from mpp.study.report.figures import Group
    from mpp.study.report.tables import Table


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; `extra` is folded."""

    title: str
    text: str = ""
    figures: Sequence[Group | None] = ()
    tables: Sequence[Table | None] = ()
    extra: Sequence[Group | Table | None] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not any((*self.figures, *self.tables, *self.extra))


def write_page(results: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into the study's folder.

    Args:
        results: what `results.json` holds.
        folder: of the study; pictures that it does not hold are left out.

    Raises:
        RuntimeError: if jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2

        from mpp.study.report import tables
        from mpp.study.report.charts import Charts
    except ImportError as error:
        raise RuntimeError(f'the report needs {error.name}: pip install "mpp[study]"') from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    arms, rows = results["arms"], read(results["rows"])
    charts = Charts({name: arm["title"] for name, arm in arms.items()})
    directions = [False, *([True] if any(row.variant.swapped for row in rows) else [])]
    text = environment.get_template("page.html.j2").render(
        results=results,
        about=_about(rows),
        looks=charts.looks,
        answers=tables.answers(results["claims"], arms),
        directions=[(swapped, _direction(results, rows, charts, swapped)) for swapped in directions],
        costs=tables.cost_table(rows, arms, "Images, operations and time, means over the seeds"),
        pictures=_pictures(results, folder),
        recipe=yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True),
    )
    path = folder / "report.html"
    write_text(path, f"{text.strip()}\n")
    return path


def _direction(results: dict[str, Any], every: Sequence[Row], charts: Charts, swapped: bool) -> list[Section]:
    """Everything about one direction."""
    from mpp.study.report import tables
    from mpp.study.report.figures import Figures

    arms, own = results["arms"], Variant(swapped)
    rows = select(every, variant=own)
    cells = accuracies(rows, own)
    chance = _chance(rows)
    figures = Figures(charts, arms, rows, chance)
    claims = [claim for claim in results["claims"] if Variant(*(claim[n] for n in Variant._fields)) == own]
    guess = f" Guessing gets {chance:.1f} % right." if chance else ""
    sections = [
        Section(
            "Accuracies",
            f"On the downstream test images: mean ± standard deviation over the seeds.{guess} Frozen features are "
            "those of the block and pooling that each evaluator chose on a dev split of the training images.",
            [figures.by_labels()],
            [tables.accuracy_table([("", cells)], arms, "Accuracy on the downstream test images, per cent")],
            [
                tables.accuracy_table([("", cells)], arms, "The same at the encoder's own last feature", "default"),
                tables.layer_table(rows, arms),
                tables.penalty_table(rows, arms),
            ],
        ),
        Section(
            "All claims",
            f"{results['note']} Points are mean differences over the seeds, whiskers paired 95 % intervals; a hollow "
            "point is not resolved, an arrow says that a whisker goes on.",
            [figures.forest(claims)],
            (),
            [tables.claims_table(claims, arms, "All claims, with paired 95 % intervals")],
        ),
        Section(
            "Held-out loss in pre-training",
            "Thick lines are means over the seeds, thin ones single seeds. Each arm has its own axis, since the losses "
            "are of different things. A model that has learnt anything beats the label frequencies; one that sees more "
            "than colour beats the visible neighbours.",
            [figures.losses()],
        ),
        Section(
            "Accuracy during pre-training, on upstream images",
            "Frozen features of the last block, fitted to and evaluated on parts of the upstream training images. "
            "Supervised pre-training learns these very labels: of that arm they say how well it knows them.",
            [figures.in_training()],
            (),
            [figures.in_training(compute=True)],
        ),
        Section(
            "Accuracy after fine-tuning, against its cost",
            "On downstream test images. Pre-training, fine-tuning and its searches are counted together; evaluations "
            "are not.",
            [figures.spent()],
        ),
        Section(
            "Accuracy while fine-tuning, on the dev split", "Of the run that the search chose.", [figures.tuning()]
        ),
        Section(
            "Accuracy by depth",
            "On the dev split of the downstream training images, by the block of the frozen features.",
            [figures.depth()],
        ),
        *_axes(results, every, charts, own),
    ]
    return [section for section in sections if not section.is_empty]


def _axes(results: dict[str, Any], every: Sequence[Row], charts: Charts, own: Variant) -> list[Section]:
    """Accuracy by number of pre-training images, and by size of the model, where the study has them."""
    from mpp.study.claims import variant_title
    from mpp.study.report import tables
    from mpp.study.report.figures import Figures

    variants = [v for v in dict.fromkeys(row.variant for row in every) if v.swapped == own.swapped]
    found = []
    for axis, title, x in (("images", "By number of pre-training images", "pre-training images"),
                           ("size", "By size of the model", "size of the encoder")):  # fmt: skip
        others = [variant for variant in variants if getattr(variant, axis) is not None]
        if not others:
            continue
        shown: list[tuple[float, Variant, Cells]] = []
        for variant in [*others, *([own] if own in variants else [])]:
            here = select(every, variant=variant, evaluator="pretrain")
            values = [r.value for r in here if r.metric == ("rows" if axis == "images" else "flops_per_image")]
            shown.append((max(values, default=0.0), variant, accuracies(every, variant)))
        shown.sort(key=lambda each: each[0])
        if axis == "size":
            shown = [(float(place), variant, cells) for place, (_, variant, cells) in enumerate(shown)]
        varied = {arm for _, variant, cells in shown if variant != own for arm in cells}
        shown = [(at, variant, {a: c for a, c in cells.items() if a in varied}) for at, variant, cells in shown]
        rows = [row for row in every if row.variant in others]
        claims = [c for c in results["claims"] if Variant(*(c[n] for n in Variant._fields)) in others]
        figures = Figures(charts, results["arms"], rows, _chance(rows))
        named = [(variant_title(variant) or "as in the recipe", cells) for _, variant, cells in shown]
        found.append(
            Section(
                title,
                "",
                [figures.axis(shown, x, named=axis == "size")],
                [tables.accuracy_table(named, results["arms"], f"{title}, per cent")],
                [tables.claims_table(claims, results["arms"], f"{title}: claims")],
            )
        )
    return found


def _chance(rows: Sequence[Row]) -> float | None:
    classes = [row.value for row in select(rows, evaluator="evaluate", metric="classes")]
    return 100 / classes[0] if classes else None


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
    own = select(rows, variant=Variant())
    known = {"rows": "pretrain", "images_seen": "pretrain", "train_images": "evaluate", "test_images": "evaluate",
             "classes": "evaluate"}  # fmt: skip
    found = {n: [r.value for r in select(own, evaluator=evaluator, metric=n)] for n, evaluator in known.items()}
    return {name: int(max(values)) if values else None for name, values in found.items()}
