"""The page of a gap study: whole, on its own, true to its numbers, and robust to what is missing."""

from __future__ import annotations

import copy
import html
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpp.study.arms import TITLES
from mpp.study.claims import summarize
from mpp.study.report.page import write_page
from mpp.study.report.palette import LOOKS, OTHER
from mpp.study.report.series import Variant, look_title
from mpp.study.report.tables import accuracy, power, signed

VOID = {"meta", "link", "br", "img", "hr", "input"}
ARMS = ("random", "scratch", "mean_color", "full_patch", "supervised")
LEVEL = {"random": 0.2, "scratch": 0.3, "mean_color": 0.4, "full_patch": 0.25, "supervised": 0.35, "raw_pixels": 0.15}


def unit(arm: str, seed: int, back: bool = False, images: int | None = None, size: str | None = None) -> dict[str, Any]:
    """A unit's outcome, in the form in which a study writes it, with made-up numbers that differ everywhere."""
    level = LEVEL[arm] + 0.01 * math.sin(7 * seed + len(arm)) - (0.05 if images else 0)
    learns = arm in ("mean_color", "full_patch", "supervised")
    looks = [
        {
            "step": step,
            "samples": 64 * step,
            "validation/loss": 4 - 0.1 * step + 0.01 * seed,
            **({"validation/loss_mask": 4.1 - 0.1 * step} if arm != "supervised" else {}),
            "evaluation/few_shot_5_avg": level * step / 4,
            "evaluation/few_shot_5_token": level * step / 5,
            "evaluation/knn_20_avg": None if step == 2 else level * step / 3,
            "evaluation/knn_100_avg": math.nan,
        }
        for step in (1, 2, 3)
    ]
    neighbours = {"neighbours": 3.2} if arm != "supervised" else {"chance": math.log(4)}

    def place(block: int, pool: str, gain: float) -> dict[str, Any]:
        shots = {str(count): {"mean": level + gain + 0.01 * count, "std": 0.01} for count in (1, 5)}
        return {"block": block, "pool": pool, "accuracy": level + gain, "shots": shots}

    depth = [place(block, pool, 0.01 * block) for block in (1, 2) for pool in ("token", "avg")]
    score = {"by_depth": depth if arm != "raw_pixels" else [], "default": place(2, "token", 0.0)}
    score["headline"] = place(1, "avg", 0.02)
    pretraining = {
        "images_seen": 192, "flops_per_image": 2e8 if size else 1e8, "seconds": 30.0 + seed, "rows": images or 500,
        "baselines": {"histogram": 4.2, **neighbours}, "curve": looks,
        "reconstructions": f"{arm}/picture.png" if arm in ("mean_color", "full_patch") else None,
    }  # fmt: skip
    tuned = {
        "test": {"accuracy": level + 0.1}, "images_seen": 640, "flops": 6.4e10, "seconds": 12.0,
        "curve": [{"samples": 64 * step, "accuracy": level * step / 10} for step in (5, 10)],
    }  # fmt: skip
    return {
        "name": f"{arm}/seed-{seed}", "arm": arm, "seed": seed, "back": back, "images": images, "size": size,
        "pretraining": pretraining if learns else None,
        "evaluation": {"classes": 4, "train_images": 90, "test_images": 50, "scores": {"few_shot": score, "knn": score}}
        if arm != "scratch" else None,
        "finetuning": {"0.1": tuned} if arm != "raw_pixels" else {},
    }  # fmt: skip


def study(units: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The results of a study of these units."""
    recipe = {
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 4, "arguments": {"depth": 2}},
        "upstream": {"source": "embedded:a", "image_size": 32},
        "downstream": {"source": "embedded:b", "image_size": 32},
    }
    return {**summarize(units), "recipe": recipe, "unfinished": [], **changes}


def everything() -> list[dict[str, Any]]:
    units = [unit("raw_pixels", 0)] + [unit(arm, seed) for seed in (0, 1, 2) for arm in ARMS]
    units += [unit(arm, seed, images=100) for seed in (0, 1) for arm in ("mean_color", "supervised")]
    units += [unit(arm, seed, size="wide") for seed in (0, 1) for arm in ("mean_color", "supervised")]
    return units + [unit(arm, seed, back=True) for seed in (0, 1) for arm in ("random", "mean_color", "supervised")]


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
        self.text = re.sub(r"\s+", " ", "".join(self.words)).replace("\u00a0", " ")

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
            self.references += [value or ""] if name in ("href", "src", "srcset", "xlink:href", "action") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "title", "desc"):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open) and self.tables[-1]:
            self.tables[-1][-1][-1] += data.replace("\u00a0", " ").replace("\n", " ")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return study(everything(), unfinished=["back/supervised/seed-2"])


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
    assert all(re.match(r"#|data:image/png;base64,|data:,$", reference) for reference in page.references)
    assert not re.search(r"https?:|@import|@font-face", text)
    outside = re.findall(r"url\((?!#)[^)]*\)", text)
    assert not outside


def test_every_id_is_there_once_and_every_reference_to_one_is_met(text: str, page: Page):
    assert len(page.ids) == len(set(page.ids))
    wanted = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert wanted | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)


def test_every_headline_claim_is_a_sentence_and_every_claim_a_row(results: dict[str, Any], page: Page):
    told = [claim for claim in results["claims"] if claim["headline"]]
    assert len(told) > 5
    for claim in told:
        assert claim["sentence"] in page.text
    assert {claim["verdict"] for claim in results["claims"]} == {"shown", "shown, the other way round", "not resolved"}
    rows = [row for table in page.tables if table[0][-1] == "verdict" for row in table[1:] if row[-1]]
    assert len(rows) == len(results["claims"])
    for claim in (claim for claim in results["claims"] if "mean" in claim):
        points = [signed(100 * claim[name]) for name in ("mean", "low", "high")]
        assert any(row[1:3] == [points[0], f"[{points[1]}, {points[2]}]"] for row in rows)


def test_the_table_has_the_numbers_of_the_results(results: dict[str, Any], page: Page):
    table = next(table for table in results["tables"] if table["variant"] == "")
    header, *rows = page.tables[0]
    shown = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows if len(row) == len(header)}
    metrics = [metric for metric in table["metrics"] if not metric.endswith(", default")]
    assert header == ["arm", "seeds", *metrics]
    assert set(shown) == {TITLES[arm] for arm in table["arms"]}
    for arm, cells in table["arms"].items():
        for metric in metrics:
            found = shown[TITLES[arm]][metric]
            if metric not in cells:
                assert found == "–"
                continue
            mean, *std = (float(number) for number in found.split(" ± "))
            assert mean == pytest.approx(100 * cells[metric]["mean"], abs=0.0501)
            assert std == ([pytest.approx(100 * cells[metric]["std"], abs=0.0501)] if cells[metric]["std"] else [])
    assert shown[TITLES["mean_color"]]["seeds"] == "3"
    assert shown[TITLES["raw_pixels"]]["seeds"] == "1"
    assert "Guessing gets 25.0 % right" in page.text


def test_a_probe_whose_grid_ended_or_that_did_not_converge_is_told(tmp_path: Path):
    units = [unit("mean_color", seed) for seed in range(3)]
    ends = [(0.1, None, True), (1000.0, "largest", True), (1000.0, "largest", False)]
    for each, (c, end, converged) in zip(units, ends, strict=True):
        score = {"block": 2, "pool": "avg", "accuracy": 0.5, "c": c, "grid_end": end, "converged": converged}
        each["evaluation"]["scores"]["linear_probe"] = {"by_depth": [], "default": score, "headline": score}
    text = written(study(units), tmp_path).text
    assert "0.1; 1000 (×2)" in text
    assert "1000 is the largest tried; 1 not converged" in text


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"lr": [1e-3], "pool": []}, "frozen features and the learning rate of fine-tuning are chosen"),
        ({"lr": [], "pool": ["avg"]}, "frozen features and the pooling of fine-tuning are chosen"),
        (
            {"lr": [1e-3], "pool": ["avg"]},
            "features, the learning rate of fine-tuning and the pooling of fine-tuning are",
        ),
        ({"lr": [], "pool": []}, "the pooling of frozen features are chosen"),
    ],
)
def test_what_fine_tuning_searched_is_told_for_what_it_is(search: dict[str, Any], said: str, tmp_path: Path):
    found = study([unit("mean_color", seed) for seed in range(2)])
    found["recipe"] |= {"finetuning": {"dev": 0.1, "search": search}}
    text = written(found, tmp_path).text
    assert said in text
    assert ("which nothing was chosen by" in text) == (not any(search.values()))


def test_every_part_is_there(text: str, page: Page):
    for identity in ("answer", "accuracies", "claims", "curves", "depth", "images", "sizes", "back", "pictures", "how"):
        assert identity in page.ids
    for title in ("5-shot, class token", "kNN, k = 20, mean of patches", "few-shot, class token", "visible neighbours"):
        assert title in text
    assert "1 of 31 runs are still to come" in page.text
    assert "back/supervised/seed-2" in page.text
    assert "all 500 pre-training images" in page.text
    assert power(192 * 1e8) in page.text


def test_figures_are_named_for_those_who_cannot_see_them(text: str):
    figures = re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL)
    drawn = [figure for figure in figures if "<svg" in figure]
    assert len(drawn) > 15
    for figure in drawn:
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure)
        assert caption is not None
        assert f'role="img" aria-label="{caption[1]}"' in figure
        assert "<desc>" in figure
        assert "font-family" not in figure


def test_an_arm_has_the_same_colour_everywhere_and_no_two_share_one(text: str):
    looks = [*LOOKS.values(), OTHER]
    for field in ("name", "light", "dark", "marker"):
        assert len({getattr(look, field) for look in looks}) == len(looks), field
    for look in looks:
        assert f"--arm-{look.name}: {look.light};" in text
        assert f"--arm-{look.name}: {look.dark};" in text
    figures = "".join(re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", figures)) <= {look.light for look in looks}  # only behind var(…, …)
    assert not re.search(r"(?<!, )#[0-9a-f]{6}\b", figures)


@pytest.mark.parametrize("look", [*LOOKS.values(), OTHER], ids=lambda look: look.name)
def test_colours_stand_out_from_the_page(look: Any):
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour, behind in ((look.light, "#ffffff"), (look.dark, "#1b1d20")):
        low, high = sorted((luminance(colour), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 3


def test_the_same_results_give_the_same_bytes(results: dict[str, Any], folder: Path, text: str):
    assert write_page(copy.deepcopy(results), folder).read_text(encoding="utf-8") == text


def test_pictures_that_are_missing_are_left_out(text: str):
    alternatives = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)"', text)
    assert [html.unescape(name).rpartition(": ")[2] for name in alternatives] == [TITLES["mean_color"]] * 2  # and back


def test_names_cannot_become_markup(tmp_path: Path):
    evil = '<script>alert("1")</script> & $x_1$'
    results = study([unit(arm, seed) for seed in (0, 1) for arm in ("random", "mean_color", "supervised")])
    results["titles"] = {**results["titles"], "mean_color": evil}
    results["recipe"]["upstream"]["source"] = results["recipe"]["encoder"]["name"] = evil
    results["unfinished"] = [evil]
    sized = [unit("mean_color", seed, size="<b>$\\frac</b>") for seed in (0, 1)]
    results["tables"] += summarize(sized)["tables"]
    results["units"] += sized
    page = written(results, tmp_path)
    assert evil in page.text


def test_one_seed_has_no_spread_and_no_claims(tmp_path: Path):
    results = study([unit(arm, 0) for arm in ARMS])
    page = written(results, tmp_path)
    assert "±" not in "".join(cell for row in page.tables[0] for cell in row)
    assert "There is no headline claim" in page.text
    assert "There is one seed alone" in page.text
    assert "supervised" in page.text


def test_a_study_that_has_only_begun_has_a_page(tmp_path: Path):
    page = written(study([unit("raw_pixels", 0)], unfinished=["mean_color/seed-0"] * 30), tmp_path)
    assert "30 of 31 runs are still to come" in page.text
    assert TITLES["raw_pixels"] in page.text
    assert "curves" not in page.ids


@pytest.mark.parametrize("part", ["finetuning", "evaluation", "pretraining", "curve"])
def test_any_part_may_be_missing(part: str, tmp_path: Path):
    units = [unit(arm, seed) for seed in (0, 1) for arm in ("random", "scratch", "mean_color")]
    for each in units:
        if part == "curve":
            for place in [each["pretraining"] or {}, *each["finetuning"].values()]:
                place["curve"] = []
        else:
            each[part] = {} if part == "finetuning" else None
    page = written(study(units), tmp_path)
    assert "how" in page.ids
    assert ("depth" in page.ids) == (part != "evaluation")
    text = (tmp_path / "report.html").read_text()
    assert ("Held-out loss in pre-training" in text) == (part not in ("curve", "pretraining"))
    assert ("Accuracy while fine-tuning" in text) == (part not in ("curve", "finetuning"))
    assert ("against what it took" in text) == (part != "finetuning")


def test_a_seed_may_be_missing_from_an_arm_and_numbers_may_be_none_or_not_finite(tmp_path: Path):
    units = [unit(arm, seed) for seed in (0, 1, 2) for arm in ARMS]
    units = [each for each in units if (each["arm"], each["seed"]) != ("supervised", 2)]
    units[2]["pretraining"]["baselines"] = {"histogram": math.nan}
    units[2]["pretraining"] |= {"flops_per_image": None, "seconds": None, "rows": None}
    units[4]["finetuning"]["0.1"]["curve"][0]["accuracy"] = math.inf
    results = study(units)
    results["tables"][0]["arms"]["random"]["kNN"] |= {"mean": math.nan, "std": None}
    page = written(results, tmp_path)
    rows = {row[0]: row for row in page.tables[0]}
    assert rows[TITLES["supervised"]][1] == "2"
    assert rows[TITLES["random"]][page.tables[0][0].index("kNN")] == "–"


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, results: dict[str, Any], tmp_path: Path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RuntimeError, match=re.escape('the report needs jinja2: pip install "mpp[study]"')):
        write_page(results, tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("", Variant()),
        ("back", Variant(back=True)),
        ("images=500", Variant(images=500)),
        ("back, images=500", Variant(True, 500)),
        ("size=wide, deep", Variant(size="wide, deep")),
        ("back, size=back", Variant(True, None, "back")),
    ],
)
def test_variants_are_read_back_from_their_names(name: str, variant: Variant):
    assert Variant.of_table(name) == variant


def test_numbers_are_written_as_people_write_them():
    assert [signed(value) for value in (1.26, -0.34, 0.04, -0.04)] == ["+1.3", "−0.3", "0.0", "0.0"]
    assert [power(value) for value in (2.56e11, 9.99e8, None)] == ["2.6 × 10¹¹", "1.0 × 10⁹", "–"]
    assert accuracy({"mean": 0.4526, "std": 0.0044}) == "45.3 ± 0.4"
    assert accuracy({"mean": 0.5, "std": None}) == "50.0"
    assert look_title("evaluation/few_shot_10_token") == "10-shot, class token"
    assert look_title("evaluation/other") == "other"
