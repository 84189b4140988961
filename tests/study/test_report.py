"""The page of a gap study: whole, on its own, true to its numbers, and robust to what is missing."""

from __future__ import annotations

import base64
import copy
import html
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mpp
from mpp.recipe import GapRecipe, load_recipe
from mpp.study.claims import EXPLORATORY, SHOWN, signed, variant_title
from mpp.study.pilot import choices_of, ends_of
from mpp.study.preflight import check_claims
from mpp.study.report.charts import COLORS, MARKERS, Lines, draw, looks_of
from mpp.study.report.figures import AXES, Figures, measure_of
from mpp.study.report.page import write_page
from mpp.study.report.tables import accuracy
from mpp.study.results import Row, select
from mpp.study.settings import PilotSettings
from mpp.study.units import Variant, pilot_units, units_of
from tests.support.study_results import row, study, tried, unit

VOID = {"meta", "link", "br", "img", "hr", "input"}
ARMS = ("random", "scratch", "mean_color", "full_patch", "supervised")


def everything() -> list[Row]:
    rows = unit("raw_pixels", 0)
    for arm in ARMS:
        rows += [each for seed in (0, 1, 2) for each in unit(arm, seed)]
    for arm in ("mean_color", "supervised"):
        for variant in ({"images": 100}, {"size": "wide"}, {"direction": "swapped"}, {"length": 0.25}, {"length": 0.5},
                        {"length": 0.25, "images": 100}):  # fmt: skip
            rows += [each for seed in (0, 1) for each in unit(arm, seed, **variant)]
    for variant in ({"corruption": 0.15}, {"target": "pixels"}):
        rows += [each for seed in (0, 1, 2) for each in unit("mean_color", seed, **variant)]
    return rows


PILOT = {"lr": [1e-3, 3e-3], "finetuning_lr": [1e-3, 3e-3, 1e-2], "pools": ["token", "avg"]}


def piloted(rows: list[Row], *arms: str, **changes: Any) -> dict[str, Any]:
    """The results of a study with a pilot of these arms."""
    grid = tried(*arms)
    choices = {arm: choice.model_dump() for arm, choice in choices_of(grid).items()}
    return study(rows, {"pilot": PILOT, "choices": choices}, pilot=[list(each) for each in grid], **changes)


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers what a page says and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed")
        for name, value in attrs:
            assert not name.startswith("on")
            self.ids += [value or ""] if name == "id" else []
            self.references += [value or ""] if name in ("href", "src", "srcset", "action") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "title"):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open) and self.tables[-1]:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return piloted(everything(), *ARMS, unfinished=["swapped/supervised/seed-2"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, results: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "mean_color").mkdir()  # the other arm's picture is missing
    Image.new("RGB", (8, 8), "red").save(folder / "mean_color" / "picture.png")
    assert write_page(results, folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def written(results: dict[str, Any], folder: Path) -> Page:
    return Page(write_page(results, folder).read_text(encoding="utf-8"))


def test_the_page_refers_to_nothing_outside_itself(text: str, page: Page):
    assert page.references
    assert all(re.match(r"#|data:image/(png|svg\+xml);base64,|data:,$", reference) for reference in page.references)
    assert not re.search(r"https?:|@import|@font-face|url\(", text)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)


def lines_of(page: Page, first: str) -> list[list[str]]:
    """The lines of all tables whose first column has this heading."""
    return [line for table in page.tables if table[0][0] == first for line in table[1:] if len(line) > 1]


def accuracies_of(page: Page) -> list[list[str]]:
    """The table of accuracies, with its heading."""
    return next(table for table in page.tables if table[0][:2] == ["arm", "seeds"])


def test_every_claim_is_a_line_with_its_own_numbers(results: dict[str, Any], page: Page):
    primary, tables = lines_of(page, "claim"), [table for table in page.tables if table[0][0] == "comparison"]
    assert len(primary) == sum(claim["primary"] for claim in results["claims"]) == 5
    shown = [cell for table in tables for line in table[1:] for cell in line[2:] if cell != "–"]
    assert len(shown) == len(results["claims"]) - len(primary)
    for claim in results["claims"]:
        mean, low, high = (
            None if claim[name] is None else signed(100 * claim[name]) for name in ("mean", "low", "high")
        )
        if claim["primary"]:
            p, able = claim["adjusted_p"], f"{100 * claim['detectable']:.1f}"
            numbers = [mean, f"[{low}, {high}]", "< 0.001" if p < 0.001 else f"{p:.3f}", able]
            numbers += [f"{len(claim['seeds'])}", claim["verdict"]]
            [line] = [line for line in primary if line[1:] == numbers and has_arms(line, claim, results)]
            primary.remove(line)
        else:
            cells = [dict(zip(table[0], line, strict=True)) for table in tables for line in table[1:]
                     if len(line) > 1 and has_arms(line, claim, results)]  # fmt: skip
            number = f"{mean} [{low}, {high}]" if low else mean
            assert number in [each.get(measure_of(claim).title) for each in cells]


def has_arms(line: list[str], claim: dict[str, Any], results: dict[str, Any]) -> bool:
    lower, higher = (results["arms"][arm]["title"] for arm in claim["arms"])
    if claim["primary"]:
        return line[0] == f"{higher} − {lower}, {measure_of(claim).title}"
    return line[0].startswith(f"{higher}: " if lower == higher else f"{higher} − {lower}")


def test_what_is_exploratory_never_says_shown(results: dict[str, Any], page: Page, text: str):
    others = [claim for claim in results["claims"] if not claim["primary"]]
    assert others
    assert all(claim["verdict"] == EXPLORATORY for claim in others)
    for line in lines_of(page, "comparison"):
        assert SHOWN not in " ".join(line[1:])
    sections = re.findall(r"<summary>[^<]*xploratory[^<]*</summary>(.*?)</details>", text, re.S)
    assert len(sections) > 4
    assert not any(re.search(r"\bshown\b", html.unescape(section)) for section in sections)


def test_a_forest_is_filled_where_a_claim_is_shown_and_hollow_elsewhere():
    rows = [each for seed in (0, 1, 2) for arm in ARMS for each in unit(arm, seed)]
    found = study(rows)
    figures = Figures(looks_of({n: a["title"] for n, a in found["arms"].items()}), found["arms"], rows, swapped=False)
    claims = [claim for claim in found["claims"] if claim["primary"]]
    forest = figures.primary(claims)
    others = figures.forest([claim for claim in found["claims"] if not claim["primary"]])
    assert forest is not None
    assert others is not None
    shown = sum(claim["verdict"].startswith(SHOWN) for claim in claims)
    assert shown > 0
    assert filled(forest.panels[0].source) == shown
    assert sum(filled(panel.source) for panel in others.panels) == 0
    assert all(claim["text"] in forest.panels[0].description for claim in claims)


def filled(source: str) -> int:
    """How many markers of an SVG are filled with a colour of an arm."""
    svg = base64.b64decode(source.partition(",")[2]).decode()
    return len(re.findall(rf'<use [^>]*style="fill: (?:{"|".join(COLORS)})', svg))


def test_the_table_has_the_numbers_of_the_rows(page: Page):
    header, *lines = accuracies_of(page)
    shown = {line[0].split(" ", 1)[1].strip(): dict(zip(header, line, strict=True)) for line in lines if len(line) > 1}
    assert header == ["arm", "seeds", "1-shot", "5-shot", "kNN", "linear probe", "fine-tuned, 10 % of labels"]
    for arm, title in (("mean_color", "MPP, mean colour"), ("raw_pixels", "raw pixels"), ("random", "random start")):
        own = select(everything(), arm=arm, variant=Variant(), metric="accuracy")
        for name, where in {"5-shot": {"evaluator": "few_shot", "setting": 5, "layer": "chosen"},
                            "kNN": {"evaluator": "knn", "setting": 20, "layer": "chosen"},
                            "linear probe": {"evaluator": "linear_probe", "layer": "chosen"}}.items():  # fmt: skip
            values = [each.value for each in select(own, **where)]
            mean, *std = (float(number) for number in shown[title][name].split(" ± "))
            assert mean == pytest.approx(100 * statistics.fmean(values), abs=0.0501)
            assert std == ([pytest.approx(100 * statistics.stdev(values), abs=0.0501)] if len(values) > 1 else [])
    assert shown["scratch, total budget"]["kNN"] == "–"
    assert "Guessing gets 25.0 % right" in page.text


def test_what_a_search_took_is_a_column_and_part_of_all_training(page: Page, text: str):
    costs = next(table for table in page.tables if "its search, 10 %: FLOPs" in table[0])
    line = dict(zip(costs[0], next(each for each in costs if "MPP, mean colour" in each[0]), strict=True))
    assert line["its search, 10 %: images"] == "1,280"
    assert line["its search, 10 %: FLOPs"] == "1.3e+11"
    assert line["pre-training: FLOPs"] == "1.9e+10"
    total = 192 + 640 + 1280
    [figure] = re.findall(r'accuracy, % against images seen in all training\. Last points: ([^"]*)"', text)[:1]
    assert f"MPP, mean colour {100 * statistics.fmean(tuned()):.3g} at {total:,}" in html.unescape(figure)


def tuned() -> list[float]:
    return [r.value for r in select(everything(), arm="mean_color", evaluator="finetune", metric="accuracy",
                                    variant=Variant())]  # fmt: skip


def test_a_probe_whose_grid_ended_or_that_did_not_converge_is_reported(page: Page):
    assert "0.1; 1; 10" in page.text
    assert "(10 is the largest tried; 1 not converged)" in page.text


def test_every_part_is_there(text: str, page: Page):
    for words in ("Primary claims", "Accuracies", "Exploratory comparisons", "Held-out loss",
                  "By number of pre-training images",
                  "By size of the encoder", "Swapped direction", "The pilot", "Accuracy by depth", "Reconstructions",
                  "1 of 47 runs are missing", "swapped/supervised/seed-2", "kNN, class token",
                  "5-shot, mean of patches",
                  "visible neighbours", variant_title(Variant(images=100))):  # fmt: skip
        assert words in text, words


def test_figures_are_svg_with_a_description_and_the_arm_s_own_colours(text: str):
    figures = re.findall(r'</figcaption><img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]*)"', text)
    assert len(figures) > 12
    for source, description in figures:
        svg = base64.b64decode(source).decode()
        assert "<svg" in svg
        assert description
    svg = base64.b64decode(next(source for source, words in figures if "MPP, mean colour" in words)).decode()
    color = re.search(r'style="color: (#\w+)">\S+</span> MPP, mean colour', text)
    assert color is not None
    assert color[1] in svg


@pytest.mark.parametrize("color", COLORS)
def test_colours_stand_out_from_the_page(color: str):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 3
    assert len(COLORS) == len(set(COLORS)) == len(set(MARKERS))


def test_the_same_results_give_the_same_bytes(results: dict[str, Any], folder: Path, text: str):
    assert write_page(copy.deepcopy(results), folder).read_text(encoding="utf-8") == text


def test_pictures_that_are_missing_are_left_out(text: str):
    alternatives = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)"', text)
    assert [html.unescape(name).rpartition(": ")[2] for name in alternatives] == ["MPP, mean colour"]


def test_names_cannot_become_markup(tmp_path: Path):
    evil = '<script>alert("1")</script> & $x_1$'
    rows = [each for seed in (0, 1) for arm in ("random", "mean_color", "supervised") for each in unit(arm, seed)]
    rows += [each for seed in (0, 1) for each in unit("mean_color", seed, size="<b>$\\frac</b>")]
    results = study(rows, unfinished=[evil])
    results["arms"]["mean_color"]["title"] = evil
    results["recipe"]["upstream"]["source"] = results["recipe"]["encoder"]["name"] = evil
    assert evil in written(results, tmp_path).text


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_with_fewer_than_three_seeds_there_are_differences_without_verdicts(seeds: tuple[int, ...], tmp_path: Path):
    results = study([each for arm in ARMS for seed in seeds for each in unit(arm, seed)])
    page = written(results, tmp_path)
    assert ("±" in "".join(cell for line in accuracies_of(page) for cell in line)) == (len(seeds) > 1)
    assert ("There is one seed alone" in page.text) == (len(seeds) == 1)
    assert "With fewer than 3 seeds, there are differences and no verdicts." in page.text
    rows = lines_of(page, "claim")
    assert {line[-1] for line in rows} == {"no verdict"}
    assert {tuple(line[3:5]) for line in rows} == {("–", "–")}
    assert all(re.fullmatch(r"[+−]?\d+\.\d", line[1]) for line in rows)
    assert all((line[2] == "–") == (len(seeds) == 1) for line in rows)
    assert "not resolved" not in page.text.partition("How it was measured")[0]


def test_the_page_begins_with_the_answer_and_explains_its_words(page: Page, results: dict[str, Any]):
    assert len(results["answer"]) == 3
    at = [page.text.index(sentence) for sentence in results["answer"]]
    assert at == sorted(at)
    assert at[0] < 100, "nothing but the title comes first"
    rest = page.text[at[-1] : at[-1] + 2500]
    for words in ("An arm is one way", "Primary claims", "could have shown", "Shown: p < 0.05, corrected"):
        assert words in rest


def test_an_axis_has_its_variants_and_the_study_s_own(page: Page, text: str):
    for axis, title in AXES.items():
        assert f">{title}</h2>" in text, axis
    lengths = next(table for table in page.tables if any("0.25 × the length" in line for line in table))
    assert [line[0] for line in lengths if len(line) == 1] == ["0.25 × the length", "0.5 × the length",
                                                               "as in the recipe"]  # fmt: skip
    assert any("0.25 × the length" in line[0] and "100 pre-training images" in line[0]
               for table in page.tables for line in table if len(line) == 1)  # fmt: skip


def test_curves_over_length_are_against_the_images_and_flops_of_each_length():
    rows = everything()
    arms = study(rows)["arms"]
    figures = Figures(looks_of({n: a["title"] for n, a in arms.items()}), arms, rows, swapped=False)
    for compute, xs in ((False, ["48", "96", "192"]), (True, ["4.8G", "9.6G", "19.2G"])):
        chart = figures.by("length", compute=compute)
        assert chart is not None
        assert [panel.title for panel in chart.panels] == ["1-shot", "5-shot", "kNN", "linear probe",
                                                           "fine-tuned, 10 % of labels"]  # fmt: skip
        for panel in chart.panels:
            assert ticks(panel.source, "x") == xs
        assert "scratch, total budget" in chart.panels[-1].description
        names = [key.description for key in chart.legend]
        assert names == [*(arms[arm]["title"] for arm in ARMS), "chance"]


def test_the_mean_of_an_axis_is_of_the_seeds_that_are_there():
    rows = [each for seed in (0, 1, 2) for each in unit("mean_color", seed)] + unit("mean_color", 1, length=0.5)
    arms = study(rows, {"primary": []})["arms"]
    chart = Figures(looks_of({"mean_color": "m"}), arms, rows, swapped=False).by("length")
    assert chart is not None
    svg = base64.b64decode(chart.panels[0].source.partition(",")[2]).decode()
    assert len(re.findall(rf"<use [^>]*style=\"fill: {COLORS[0]}", svg)) == 2, "a mark for each length"


def test_the_pilot_shows_all_it_tried_marks_its_choices_and_names_a_grid_s_end(results: dict[str, Any], page: Page):
    assert lines_of(page, "tried")
    grid = tried(*ARMS)
    cells = [cell for line in lines_of(page, "tried") for cell in line[1:]]
    assert len([cell for cell in cells if cell != "–"]) == sum(each.accuracy is not None for each in grid)
    best = {arm: max(each.accuracy or 0 for each in grid if each.arm == arm) for arm in ARMS}
    assert sorted(cell for cell in cells if cell.endswith("✓")) == sorted(f"{100 * b:.1f} ✓" for b in best.values())
    ends = [words for choice in choices_of(grid).values() for words in ends_of(choice, PilotSettings(**PILOT))]
    assert ends
    for words in ends:
        assert words in page.text
    total = next(line for table in page.tables if table[0][1] == "trainings" for line in table if line[0] == "all arms")
    assert total[1:3] == [f"{sum(e.stage != 'evaluate' for e in grid)}", f"{sum(e.images_seen for e in grid):,.0f}"]


def test_the_pilot_is_part_of_the_costs(page: Page, results: dict[str, Any]):
    costs = next(table for table in page.tables if "pilot, in all: images" in table[0])
    line = dict(zip(costs[0], next(each for each in costs if "MPP, mean colour" in each[0]), strict=True))
    own = [each for each in tried(*ARMS) if each.arm == "mean_color"]
    assert line["pilot, in all: images"] == f"{sum(each.images_seen for each in own):,.0f}"
    spent = [r.value for r in everything() if r.metric == "images_seen"]
    total = sum(spent) + sum(each.images_seen for each in tried(*ARMS))
    assert f"the pilot included: {total:,.0f} images" in page.text


def test_a_study_without_a_pilot_or_with_an_earlier_one_says_so(tmp_path: Path):
    rows = [each for seed in (0, 1, 2) for arm in ("random", "mean_color") for each in unit(arm, seed)]
    page = written(study(rows), tmp_path)
    assert "There was no pilot" in page.text
    assert "What the pilot chose" not in page.text
    choices = {"mean_color": {"lr": 0.002, "finetuning": {"0.1": {"lr": 0.003}}}}
    page = written(study(rows, {"choices": choices}), tmp_path)
    assert "chosen by an earlier pilot" in page.text
    assert ["● MPP, mean colour", "0.002", "0.003"] in lines_of(page, "arm")


def test_arms_without_upstream_labels_alone_have_an_answer_of_two_sentences(tmp_path: Path):
    rows = [each for seed in (0, 1, 2) for arm in ("scratch", "mean_color") for each in unit(arm, seed)]
    results = study(rows)
    page = written(results, tmp_path)
    assert len(results["answer"]) == 2
    assert all(sentence in page.text for sentence in results["answer"])
    assert "supervised" not in page.text.partition("Primary claims")[0]


def test_a_study_of_one_data_set_says_so_and_does_not_speak_of_labels(tmp_path: Path):
    rows = [each for seed in (0, 1, 2) for arm in ("random", "mean_color") for each in unit(arm, seed)]
    page = written(study(rows, one_data_set=True), tmp_path)
    assert "pre-training and evaluation use the same data set" in page.text
    assert "no arm is trained on upstream labels" in page.text
    assert "supervised" not in page.text.partition("Primary claims")[0]
    assert "One data set:" not in written(study(rows), tmp_path).text


def test_neighbouring_panels_share_their_axis_but_for_losses():
    rows = [each for seed in (0, 1, 2) for arm in ARMS for each in unit(arm, seed)]
    own = {
        "a": Lines("a", "x", "y", {"random": [[(0, 1.0), (1, 2.0)]]}),
        "b": Lines("b", "x", "y", {"random": [[(0, 5.0)]]}),
    }
    looks = looks_of({"random": "random start"})
    together, alone = draw(own.values(), looks), draw([own["a"]], looks)
    apart = draw([replace(each, own_axis=True) for each in own.values()], looks)
    assert together is not None
    assert alone is not None
    assert apart is not None
    assert ticks(together.panels[0].source) == ticks(together.panels[1].source) != ticks(alone.panels[0].source)
    assert ticks(apart.panels[0].source) == ticks(alone.panels[0].source)
    assert [key.description for key in together.legend] == ["random start"]
    found = study(rows)
    figures = Figures(looks_of({n: a["title"] for n, a in found["arms"].items()}), found["arms"], rows, swapped=False)
    forest = figures.forest(found["claims"])
    assert forest is not None
    ends = {tuple(ticks(panel.source, "x")) for panel in forest.panels}
    assert len(forest.panels) > 2
    assert len(ends) == 1


def ticks(source: str, axis: str = "y") -> list[str]:
    """The numbers along an axis of an SVG."""
    svg = base64.b64decode(source.partition(",")[2]).decode()
    groups = re.findall(rf'<g id="{axis}tick_\d+">.*?<text[^>]*>([^<]*)</text>', svg, re.S)
    return [words for words in groups if re.search(r"\d", words)]


def test_a_study_that_has_only_begun_has_a_page(tmp_path: Path):
    page = written(study(unit("raw_pixels", 0), unfinished=["mean_color/seed-0"] * 30), tmp_path)
    assert "30 of 31 runs are missing" in page.text
    assert "raw pixels" in page.text
    assert "Held-out loss" not in page.text


@pytest.mark.parametrize(
    ("left_out", "title"),
    [
        ({"evaluator": "finetune"}, "Accuracy after fine-tuning"),
        ({"metric": "dev_accuracy"}, "Accuracy by depth"),
        ({"evaluator": "pretrain"}, "Held-out loss"),
        ({"metric": "upstream_accuracy"}, "Accuracy during pre-training"),
    ],
)
def test_any_part_may_be_missing(left_out: dict[str, Any], title: str, tmp_path: Path):
    rows = [each for seed in (0, 1) for arm in ("random", "scratch", "mean_color") for each in unit(arm, seed)]
    gone = select(rows, **left_out)
    assert title in written(study(rows), tmp_path).text
    assert title not in written(study([each for each in rows if each not in gone]), tmp_path).text


def test_seeds_that_an_arm_lacks_are_noted(tmp_path: Path):
    rows = [each for seed in (0, 1, 2) for arm in ARMS for each in unit(arm, seed)]
    rows = [r for r in rows if (r.arm, r.seed, r.evaluator) != ("supervised", 2, "knn")]
    header, *lines = accuracies_of(written(study(rows), tmp_path))
    [line] = [line for line in lines if "supervised" in line[0]]
    assert line[header.index("kNN")].endswith(" (2 of 3 seeds)")


def test_a_scale_is_named_with_what_it_scales(tmp_path: Path):
    results = study([row("random", seed, "knn", 0.5, 20, layer="chosen") for seed in (0, 1)])
    results["recipe"]["study"]["scale"] = 0.1
    assert (
        "Pre-training is 0.1 times as long as the recipe says (study.scale); fine-tuning is not."
        in written(results, tmp_path).text
    )


def test_numbers_are_written_as_people_write_them():
    assert [signed(value) for value in (1.26, -0.34, 0.04, -0.04)] == ["+1.3", "−0.3", "0.0", "0.0"]
    assert [accuracy([0.45, 0.455], 2), accuracy([0.5], 1), accuracy([], 2)] == ["45.2 ± 0.4", "50.0", "–"]
    assert variant_title(Variant(True, 500, "wide")) == "swapped direction, 500 pre-training images, size wide"


def test_the_recipe_of_the_page_about_studies_loads_and_its_claims_are_measured(tmp_path: Path):
    text = (Path(mpp.__file__).parents[1] / "docs" / "pages" / "study.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "my_study.yaml").write_text(block)
    recipe = load_recipe(tmp_path / "my_study.yaml")
    assert isinstance(recipe, GapRecipe)
    check_claims(recipe)
    names = [str(unit) for unit in units_of(recipe)]
    assert "quarter/seed-5" in names
    assert "length-0.25/supervised/seed-0" in names
    assert "pilot/quarter/lr-0.0015/seed-1000" in [str(unit) for unit in pilot_units(recipe)]
