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

from mpp.study.claims import answer_of, signed, variant_title
from mpp.study.report.charts import COLORS, MARKERS, Lines, draw, looks_of
from mpp.study.report.figures import Figures
from mpp.study.report.page import write_page
from mpp.study.report.tables import accuracy
from mpp.study.results import Row, select
from mpp.study.units import Variant
from tests.support.study_results import row, study, unit

VOID = {"meta", "link", "br", "img", "hr", "input"}
ARMS = ("random", "scratch", "mean_color", "full_patch", "supervised")


def everything() -> list[Row]:
    rows = unit("raw_pixels", 0)
    for arm in ARMS:
        rows += [each for seed in (0, 1, 2) for each in unit(arm, seed)]
    for arm in ("mean_color", "supervised"):
        for variant in ({"images": 100}, {"size": "wide"}, {"direction": "swapped"}):
            rows += [each for seed in (0, 1) for each in unit(arm, seed, **variant)]
    return rows


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
    return study(everything(), unfinished=["swapped/supervised/seed-2"])


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


def test_every_headline_claim_is_a_sentence_and_every_claim_a_row(results: dict[str, Any], page: Page):
    shown = [claim for claim in results["claims"] if claim["headline"]]
    assert len(shown) > 5
    for claim in shown:
        assert f"{claim['text']}: {claim['verdict']}." in page.text
    rows = [line for table in page.tables if table[0][-1] == "verdict" for line in table[1:] if len(line) > 1]
    assert len(rows) == len(results["claims"])
    for claim in (claim for claim in results["claims"] if "mean" in claim):
        points = [signed(100 * claim[name]) for name in ("mean", "low", "high") if claim[name] is not None]
        interval = f"[{points[1]}, {points[2]}]" if points[1:] else "–"
        assert any(line[1:3] == [points[0], interval] for line in rows)


def test_the_table_has_the_numbers_of_the_rows(page: Page):
    header, *lines = page.tables[0]
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
    for words in ("The answer", "Accuracies", "All claims", "Held-out loss", "By number of pre-training images",
                  "By size of the model", "Swapped direction", "Accuracy by depth", "Reconstructions",
                  "1 of 29 runs are missing", "swapped/supervised/seed-2", "kNN, class token",
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
def test_with_fewer_than_three_seeds_differences_are_shown_without_verdicts(seeds: tuple[int, ...], tmp_path: Path):
    results = study([each for arm in ARMS for seed in seeds for each in unit(arm, seed)])
    page = written(results, tmp_path)
    assert ("±" in "".join(cell for line in page.tables[0] for cell in line)) == (len(seeds) > 1)
    assert ("There is one seed alone" in page.text) == (len(seeds) == 1)
    assert "With fewer than 3 seeds, differences are shown and verdicts withheld." in page.text
    [table] = [table for table in page.tables if table[0][-1] == "verdict"]
    rows = [line for line in table[1:] if len(line) > 1]
    assert {line[-1] for line in rows} == {"no verdict"}
    assert all(re.fullmatch(r"[+−]?\d+\.\d", line[1]) for line in rows)
    assert all((line[2] == "–") == (len(seeds) == 1) for line in rows)
    assert not re.search(
        "not resolved|in between", page.text.partition("How it was measured")[0].rpartition("hollow")[0]
    )


def test_the_page_begins_with_the_answer_and_explains_its_words_there(page: Page, results: dict[str, Any]):
    answer = answer_of(results["claims"], results["arms"])
    title, rest = page.text.split(answer, 1)
    assert len(title) < 100, "nothing but the title comes first"
    assert ". " not in answer, "one sentence"
    for words in ("Shown: the 95 % interval", "Not resolved: the interval contains 0", "An arm is one way"):
        assert words in rest[:800]


def test_a_study_of_one_data_set_says_so_and_does_not_speak_of_labels(tmp_path: Path):
    rows = [each for seed in (0, 1, 2) for arm in ("random", "mean_color") for each in unit(arm, seed)]
    page = written(study(rows, one_data_set=True), tmp_path)
    assert "pre-training and evaluation use the same data set" in page.text
    assert "no arm is trained on upstream labels" in page.text
    assert "supervised" not in page.text.partition("The answer in full")[0]
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
    header, *lines = written(study(rows), tmp_path).tables[0]
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
