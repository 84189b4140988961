"""`mpp report`: one page of a run, with nothing outside it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mpp.report
from mpp.commands.evaluations import evaluate_command
from mpp.commands.report import unfinished, verdict
from mpp.recipe import differences, load_recipe
from mpp.training.checkpoint import Checkpoints
from mpp.training.curves import loss_curve
from tests.support.downstream import EVALUATE, PRETRAIN, good, results, written
from tests.support.forkserver import ForkServer
from tests.support.study_results import study, unit


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
    assert "pretrained:" not in page, "there is no source"
    assert str(run) not in page.partition("<h2>Recipe")[0]


def state_of(**baselines: float) -> dict[str, Any]:
    return {"headline": ("loss_mask", "loss on masked patches"), "unit": "nats", "baselines": baselines}


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (3.0, "0.62 below what the colours around tell (3.621) and 1.27 below the label frequencies (4.267). "
              "The objective was learnt."),
        (3.9, "0.28 above what the colours around tell (3.621) and 0.37 below the label frequencies (4.267). "
              "The objective was not learnt yet, as it does not beat what the colours around tell."),
        (5.0, "The objective was not learnt yet, as it does not beat the label frequencies and what the colours "
              "around tell."),
    ],
)  # fmt: skip
def test_the_verdict_compares_the_last_validation_with_every_baseline(loss: float, said: str):
    metrics = [{"step": 1, "validation/loss_mask": 9.0}, {"step": 2, "validation/loss_mask": loss}, {"step": 3}]
    text = verdict(state_of(histogram=4.267, neighbours=3.621), metrics)
    assert text.startswith(f"Held out, the loss on masked patches is {loss:.3f} nats: ")
    assert text.endswith(said)
    assert verdict(state_of(), metrics) == f"Held out, the loss on masked patches is {loss:.3f} nats."
    assert verdict(state_of(histogram=4.0), [{"step": 1}]) == "", "nothing was validated"


def test_stops_and_damaged_files_are_named_and_the_result_comes_first(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "seconds_to_first_step" in lines[0]
    lines[4]["seconds_to_first_step"] = 1.0
    lines[2]["damaged_images"] = [{"row": 3, "where": "row 3 (may/IMG_1.jpg)", "reason": "truncated"}]
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert mpp.report.main([str(copy)]) == 0
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "1 stop; resumed between steps 4 and 5" in text
    assert "1 image could not be decoded, replaced by neighbours: row 3 (may/IMG_1.jpg)" in text
    order = ["Held out, the loss", "<dt>Data", "<dt>Stops", "<dt>Damaged", "<dt>Time", "<dt>Compute"]
    assert sorted(order, key=text.index) == order


def test_the_label_of_a_baseline_stays_above_the_numbers_of_the_axis():
    metrics = [{"samples": step, "loss_mask": 5.0 - step / 1000} for step in range(0, 1000, 100)]
    figure = loss_curve(metrics, {"histogram": 6.0, "neighbours": 4.017}, headline="loss_mask", title="loss")
    figure.canvas.draw()
    [axes] = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    numbers = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(boxes) == 2
    assert not any(box.overlaps(number) for box in boxes for number in numbers)
    loss_curve(metrics, {"histogram": 4.0, "chance": 4.0}, headline="loss_mask", title="loss")


def test_the_loss_is_drawn_in_the_run_s_folder(run: Path):
    assert Image.open(run / "loss.png").size == (900, 540)


def test_another_file_and_a_run_that_is_not_finished(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "step-000000008"))
    assert mpp.report.main([str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "4 of 8 steps" in text
    assert "The run is not finished: its last checkpoint is of step 4 of 8." in text
    assert "What the features are worth was not measured yet" in text


def command_in(page: str) -> str:
    [command] = re.findall(r'<pre class="command">(.*?)</pre>', page, re.DOTALL)
    return html.unescape(command)


def test_the_command_of_the_page_evaluates_the_run_as_it_is(run: Path, tmp_path: Path, commands: ForkServer):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation"))
    assert mpp.report.main([str(copy)]) == 0
    name, command, *given = shlex.split(command_in((copy / "report.html").read_text(encoding="utf-8")))
    assert (name, command) == ("mpp", "evaluate")
    assert given[-1] == "knn.k=[20,10]", "of 90 images, a tenth of them for the dev split"
    good(commands.run("mpp.evaluate", *given, "linear_probe=null"))
    assert mpp.report.main([str(copy)]) == 0
    assert '<pre class="command">' not in (copy / "report.html").read_text(encoding="utf-8")


def test_without_labels_the_command_has_a_placeholder(run: Path, tmp_path: Path):
    state = Checkpoints(run / "checkpoints", 2).newest()
    assert state is not None
    moved = state.state | {"recipe": state.state["recipe"] | {"data": state.state["recipe"]["data"] | {
        "source": str(tmp_path / "gone")}}}  # fmt: skip
    assert evaluate_command(run, moved) == (f"mpp evaluate few_shot encoder={run} data.source=LABELLED", False)


def test_an_evaluation_of_other_weights_is_shown_as_such_and_its_own_settings_are_repeated(
    run: Path, tmp_path: Path, tinted_images: Path
):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    [path] = copy.glob("evaluation/*/results.json")
    found = json.loads(path.read_text())
    elsewhere = tmp_path / "labelled"  # not the images of the run
    elsewhere.symlink_to(tinted_images)
    found["recipe"]["data"]["source"] = str(elsewhere)
    path.write_text(json.dumps(found | {"source_weights": "0" * 64}))
    assert mpp.report.main([str(copy)]) == 0
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "Of other weights than the run's encoder has now" in text
    name, command, *given = shlex.split(command_in(text))
    assert (name, command, given[:2]) == ("mpp", "evaluate", ["few_shot", f"encoder={copy}"])
    again = load_recipe(*given[:1], given[1:])
    before = type(again).model_validate(found["recipe"])
    changed = [path for path, _, _ in differences(before, again) if not path.startswith(("encoder.", "compute."))]
    assert set(changed) <= {"output_dir"}, "the same evaluation of the present weights"
    assert f"<td>{100 * found['controls']['raw_pixels']['knn']['default']['k']['5']:.1f}</td>" in text, "its scores too"


def test_an_evaluation_s_own_folder_has_a_page_and_a_study_s_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    [folder] = run.glob("evaluation/*")
    page = tmp_path / "page.html"
    assert mpp.report.main([str(folder), "--output", str(page)]) == 0
    text, found = page.read_text(encoding="utf-8"), results(folder)
    assert f"<td>{100 * found['controls']['raw_pixels']['knn']['default']['k']['5']:.1f}</td>" in text
    assert "Verdict: the encoder is " in text
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "results.json").write_text(json.dumps(study(unit("random", 0))))
    assert mpp.report.main([str(tmp_path / "study")]) == 2
    assert (
        f"is a study, whose page mpp gap has written: {tmp_path / 'study' / 'report.html'}" in capsys.readouterr().err
    )


def test_a_run_that_early_stopping_has_ended_says_so(run: Path):
    progress = {"step": 4, "ended": True, "best_step": 2}
    assert "Early stopping has ended the run at step 4 of 8" in unfinished({"progress": progress, "steps": 8})
    assert unfinished({"progress": progress | {"step": 8}, "steps": 8}) == ""


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert mpp.report.main([str(tmp_path)]) == 2
    assert "is no run: it has no metrics.jsonl" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    assert mpp.report.main([str(tmp_path)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
