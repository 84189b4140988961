"""`mpp report`: one page of a run, with nothing outside it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import mpp.report
from tests.support.downstream import EVALUATE, PRETRAIN, good, results, written
from tests.support.forkserver import ForkServer


@pytest.fixture(scope="module")
def run(commands: ForkServer, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with reconstructions, scores of its features, and an evaluation beside controls."""
    home = tmp_path_factory.mktemp("reported")
    text = PRETRAIN.replace("{images: 0}", "{images: 2, every: {steps: 4}}")
    text += "evaluation: {evaluators: [knn], k: [5], every: {steps: 4}}\n"
    recipe = written(home / "pretrain.yaml", text, tinted_images, home / "run")
    said = good(commands.run("mpp.pretrain", recipe)).text
    for word in ("loss on masked patches, nats", "share of corrupted patches whose colour class is right"):
        assert said.count(word) == 1, "explained once, at the start"
    assert re.search(r"features: knn_5_token \d+\.\d%  knn_5_avg \d+\.\d%", said)
    explained = [line for line in said.splitlines() if line.startswith(("  ", "step "))]
    assert len(explained) > 10
    assert max(map(len, explained)) <= 80, said
    recipe = written(home / "evaluate.yaml", EVALUATE.replace("controls: false\n", ""), tinted_images)
    good(commands.run("mpp.evaluate", recipe, f"encoder={home / 'run'}"))
    return home / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    assert mpp.report.main([str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_stands_alone_and_its_pictures_can_be_read(page: str, run: Path):
    sources = re.findall(r'src="([^"]+)"', page)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|<link", page)
    pictures = [base64.b64decode(source.partition(",")[2]) for source in sources]
    for content in pictures:
        Image.open(io.BytesIO(content)).verify()
    drawn = sorted((run / "reconstructions").iterdir())
    assert [path.read_bytes() for path in (drawn[0], drawn[-1])] == pictures[-2:], "the first and the last"
    for title in ("Loss", "Speed", "Learning rate", "Frozen features during the run", "Step 4", "Step 8"):
        assert f"<figcaption>{title}</figcaption>" in page


def test_its_numbers_are_those_of_the_run(page: str, run: Path):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("validation/loss_mask", "validation/histogram", "validation/neighbours"):
        assert f"<td>{last[name]:.3f}</td>" in page
    assert "loss on masked patches, nats" in page
    [folder] = (run / "evaluation").iterdir()
    found = results(folder)
    for name in ("raw_pixels", "patch_colors"):
        assert f"<td>{100 * found['controls'][name]['knn']['default']['k']['5']:.1f}</td>" in page
    assert "<td>33.3</td>" in page, "chance"
    assert str(run) not in page.partition("<h2>Recipe")[0]


def test_the_loss_is_drawn_in_the_run_s_folder(run: Path):
    assert Image.open(run / "loss.png").size == (900, 540)


def test_another_file_and_a_run_that_is_not_finished(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "step-000000008"))
    assert mpp.report.main([str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "4 of 8 steps" in text
    assert "Nothing was measured on labels yet" in text


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert mpp.report.main([str(tmp_path)]) == 2
    assert "is no run: it has no metrics.jsonl" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    assert mpp.report.main([str(tmp_path)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
