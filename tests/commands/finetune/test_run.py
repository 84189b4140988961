"""A whole run of `mpp.finetune`: what is tested is what was trained, and no stop leaves a trace."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mpp
import mpp.report
from mpp.objective.classification import SupervisedClassification
from tests.support.downstream import (
    FINETUNE,
    TEST,
    as_two,
    crops,
    final_weights,
    good,
    journal,
    refused,
    results,
    sha,
    untimed,
    written,
)
from tests.support.forkserver import Command, ForkServer
from tests.support.looking import Finetune, best_weights, by_timm, looked, steps_said
from tests.support.runs import free_port

EVERYTHING = (
    "augmentation.mixup=0.8", "augmentation.cutmix=1.0", "augmentation.erase=0.5", "encoder.drop_path=0.2",
    "optimizer.layer_decay=0.75", "objective.label_smoothing=0.1", "encoder.attention=fused",
    "early_stopping.patience=100",
)  # fmt: skip
STEPS = 40
LONG = f"training.duration.steps={STEPS}"


@pytest.fixture(scope="module")
def straight(commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory):
    """(command, folder) of a run with every augmentation that nothing interrupted."""
    home = tmp_path_factory.mktemp("straight")
    recipe = written(home / "recipe.yaml", FINETUNE, tinted_images, home / "run")
    return good(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", LONG, *EVERYTHING)), home / "run"


def test_the_classifier_in_timm_alone_is_the_one_that_was_tested(straight: tuple[Command, Path], tinted_images: Path):
    _, run = straight
    pixels, labels = crops(tinted_images / "test.parquet")
    logits = by_timm(run, pixels)
    found = results(run)
    hits = int((logits.argmax(1) == torch.tensor(labels)).sum())
    assert round(found["test"]["accuracy"] * TEST) == hits
    assert found["test"]["images"] == TEST
    loss = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(labels))
    assert found["test"]["loss"] == pytest.approx(float(loss), abs=1e-5)
    config = json.loads((run / "classifier" / "config.json").read_text())
    assert config["label_names"] == ["one", "two", "three"]


def test_the_classifier_gives_the_best_weights_logits_to_the_last_bit(
    straight: tuple[Command, Path], tinted_images: Path
):
    _, run = straight
    best = best_weights(run)
    encoder = mpp.load_encoder(run)
    objective = SupervisedClassification(encoder, 3).eval()
    objective.load_state_dict(best)
    pixels, _ = crops(tinted_images / "test.parquet")
    with torch.no_grad():
        expected = objective(pixels, labels=torch.zeros(len(pixels), dtype=torch.long)).logits
    assert torch.equal(by_timm(run, pixels), expected)
    exported = load_file(run / "encoder" / "model.safetensors")
    assert all(torch.equal(value, best[f"encoder.vit.{name}"]) for name, value in exported.items())


def test_the_dev_split_chose_the_weights(straight: tuple[Command, Path]):
    _, run = straight
    looks = looked(run)
    assert list(looks) == list(range(4, STEPS + 1, 4))
    found = results(run)
    best = max(looks, key=lambda step: looks[step])
    assert found["best_on_dev"] == {"accuracy": pytest.approx(looks[best][0], abs=1e-8), "step": best}
    assert [path.name for path in run.glob("best-*")] == [f"best-{best:09d}.safetensors"], "older ones are gone"
    assert found["steps"] == STEPS
    assert found["images_seen"] == STEPS * 16
    assert not found["ended_early"]
    state = json.loads((run / "checkpoints" / f"step-{STEPS:09d}" / "state.json").read_text())
    assert found["flops"] == pytest.approx(STEPS * 16 * state["flops_per_image"])
    assert state["flops_per_image"] > 0


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    finetune: Finetune, straight: tuple[Command, Path], pretrained: Path, tmp_path: Path
):
    given = (f"encoder={pretrained}", LONG, *EVERYTHING)
    for number, least in ((signal.SIGKILL, 6), (signal.SIGTERM, 17)):
        command = finetune(*given, start=True)
        command.until(lambda command=command, least=least: max(steps_said(command), default=0) >= least)
        command.kill(number)
        assert command.wait() == (143 if number == signal.SIGTERM else None), command.text
        assert max(steps_said(command)) < STEPS
    again = good(finetune(*given))
    assert 17 < steps_said(again)[0] <= STEPS
    run = tmp_path / "run"
    for name in ("weights.safetensors", "optimizer.safetensors"):
        path = Path("checkpoints") / f"step-{STEPS:09d}" / name
        assert sha(run / path) == sha(straight[1] / path)
    best = next(straight[1].glob("best-*")).name
    assert [path.name for path in run.glob("best-*")] == [best]
    for name in (best, "classifier/model.safetensors", "encoder/model.safetensors"):
        assert sha(run / name) == sha(straight[1] / name)
    assert untimed(results(run)) == untimed(results(straight[1]))
    assert journal(run) == journal(straight[1])


def test_a_run_killed_after_its_last_step_is_only_tested(
    finetune: Finetune, straight: tuple[Command, Path], pretrained: Path, tmp_path: Path
):
    shutil.copytree(straight[1], tmp_path / "run")
    before = results(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "classifier")
    said = good(finetune(f"encoder={pretrained}", LONG, *EVERYTHING))
    assert not steps_said(said)
    assert untimed(results(tmp_path / "run")) == untimed(before)
    assert sha(tmp_path / "run/classifier/model.safetensors") == sha(straight[1] / "classifier/model.safetensors")


def test_two_processes_train_and_test_as_one_does(
    commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    """Without what is drawn by process: drop path and mixed batches."""
    losses, found = {}, {}
    for name in ("one", "two"):
        recipe = written(tmp_path / f"{name}.yaml", FINETUNE, tinted_images, tmp_path / name)
        changes = (f"encoder={pretrained}", "training.micro_batch_size=8", "early_stopping.patience=9")
        if name == "one":
            good(commands.run("mpp.finetune", recipe, *changes))
        else:
            for command in as_two(commands, "mpp.finetune", free_port(), recipe, *changes, "data.workers=2"):
                good(command)
        losses[name] = {line["step"]: line["loss"] for line in journal(tmp_path / name) if "loss" in line}
        found[name] = results(tmp_path / name)
    assert list(losses["two"]) == list(range(1, 13))
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert found["two"]["test"]["images"] == TEST
    assert found["two"]["test"]["loss"] == pytest.approx(found["one"]["test"]["loss"], rel=1e-4)
    assert found["two"]["test"]["accuracy"] == pytest.approx(found["one"]["test"]["accuracy"], abs=1.5 / TEST)
    for name, value in best_weights(tmp_path / "one").items():
        torch.testing.assert_close(best_weights(tmp_path / "two")[name], value, rtol=1e-3, atol=1e-5)


def test_a_finished_run_says_so_and_is_left_alone(
    commands: ForkServer, straight: tuple[Command, Path], pretrained: Path
):
    _, run = straight
    stamps = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    said = good(commands.run("mpp.finetune", run.parent / "recipe.yaml", f"encoder={pretrained}", LONG, *EVERYTHING))
    assert f"{run} is finished" in said.text
    assert f"{results(run)['test']['accuracy']:.2%} of {TEST} images" in said.text
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    good(commands.run("mpp.finetune", run / "recipe.yaml"))  # what it wrote down is the same recipe


def test_other_settings_in_the_same_folder_are_refused(
    commands: ForkServer, straight: tuple[Command, Path], pretrained: Path
):
    recipe = straight[1].parent / "recipe.yaml"
    before = sha(straight[1] / "results.json")
    changes = ("optimizer.lr=1e-4", "labels.fraction=0.5", "augmentation.mixup=0.2", "seed=8")
    words = (
        "optimizer.lr",
        "0.003",
        "0.0001",
        "labels.fraction",
        "0.5",
        "augmentation.mixup",
        "0.8",
        "0.2",
        "seed",
        "8",
    )
    refused(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", LONG, *EVERYTHING, *changes), *words)
    assert sha(straight[1] / "results.json") == before


@pytest.mark.parametrize("state", ["finished", "begun"])
def test_a_run_does_not_go_on_from_weights_that_have_changed_since(
    finetune: Finetune, pretrained: Path, tmp_path: Path, state: str
):
    source, run = tmp_path / "trained_on", tmp_path / "run"
    shutil.copytree(pretrained, source)
    good(finetune(f"encoder={source}"))
    if state == "begun":
        (run / "results.json").unlink()
        shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    weights = source / "encoder" / "model.safetensors"
    save_file({name: value + 1e-3 for name, value in load_file(weights).items()}, weights)
    refused(finetune(f"encoder={source}"), f"{run} started with other weights", f"{source} holds now")
    good(finetune(f"encoder={source}", "checkpoint.resume=false"))


def test_resume_false_starts_afresh_and_ends_where_it_did_before(
    finetune: Finetune, straight: tuple[Command, Path], pretrained: Path, tmp_path: Path
):
    shutil.copytree(straight[1], tmp_path / "run")
    (tmp_path / "run" / "mine.txt").write_text("kept")
    said = good(finetune(f"encoder={pretrained}", LONG, *EVERYTHING, "checkpoint.resume=false"))
    assert steps_said(said)[0] == 1
    assert (tmp_path / "run.1" / "mine.txt").read_text() == "kept"
    assert (tmp_path / "run.1" / "results.json").is_file()
    assert sha(final_weights(tmp_path / "run", STEPS)) == sha(final_weights(straight[1], STEPS))


def test_the_page_of_a_fine_tuning_shows_chance_and_each_class(straight: tuple[Command, Path], tinted_images: Path):
    _, run = straight
    assert mpp.report.main([str(run), "--output", str(run.parent / "page.html")]) == 0
    page = (run.parent / "page.html").read_text(encoding="utf-8")
    pixels, labels = crops(tinted_images / "test.parquet")
    predicted = by_timm(run, pixels).argmax(1).tolist()
    pairs = Counter(zip(labels, predicted, strict=True))
    rows = re.findall(r"<tr><th>(\w+)</th>((?:<td[^>]*>[^<]*</td>){3,})</tr>", page)
    cells = [(name, re.findall(r">([^<]+)<", text)) for name, text in rows]
    for number, title in enumerate(("one", "two", "three")):
        name, (images, right, share, there) = cells[number]
        assert (name, int(images), int(right)) == (title, TEST // 3, pairs[number, number])
        assert float(share) == pytest.approx(100 * pairs[number, number] / (TEST // 3), abs=0.05)
        assert int(there) == predicted.count(number)
        assert cells[3 + number] == (title, [str(pairs[number, other]) for other in range(3)])
    test = results(run)["test"]
    assert f"<td>{test['loss']:.3f}</td>" in page
    assert f"The test loss is {test['loss']:.3f} nats, and that of equal odds is 1.099." in page
    assert "Chance is 33.3% with 3 classes" in page
    visible = page.partition("<h2>Recipe")[0]
    assert "held out" not in visible.lower()
    assert "held-out" not in visible.lower()
    assert "<figcaption>Accuracy</figcaption>" in page
