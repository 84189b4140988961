"""A fine-tuned classifier on the Hub: its logits and class names by timm and transformers, and a card that is true."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.hub.test_stage import check_clean, local
from tests.support.downstream import ENCODER, FINETUNE, good, results, written
from tests.support.forkserver import ForkServer
from tests.support.model_hub import ModelHub
from tests.support.pushing import FAMILIES, ONE_STEP, Push, arrived, card, load_back, staged

CLASSIFIER = "user/tints"
NAMES = ["one", "two", "three"]
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "results.json",
         "metrics.jsonl", "loss.png"}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(run: Path, online: ForkServer, home: Path) -> Path:
    """A fine-tuning of the run, with a search."""
    recipe = written(home / "finetune.yaml", FINETUNE, home / "data of planted-alice", home / "runs" / "tuned")
    good(online.run("mpp.finetune", recipe, f"encoder={run}", "search.lr=[1e-3,3e-3]", cwd=home))
    return home / "runs" / "tuned"


@pytest.fixture(scope="module")
def pushed(tuned: Path, hub: ModelHub, push: Push) -> dict[str, bytes]:
    hub.forget()
    arrived(push(tuned, CLASSIFIER, "--license", "mit"))
    assert hub.repos[CLASSIFIER].commits[-1].message.startswith("Classifier of step ")
    return hub.repos[CLASSIFIER].commits[-1].files


def test_what_was_pushed_is_a_classifier_and_nothing_local(
    tuned: Path, run: Path, pushed: dict[str, bytes], home: Path
):
    files = {name: content for name, content in pushed.items() if name != ".gitattributes"}
    assert set(files) == FILES
    check_clean(files, local(tuned, home, run, home / "data of planted-alice"))
    assert json.loads(files["config.json"])["label_names"] == NAMES
    assert files["model.safetensors"] == (tuned / "classifier" / "model.safetensors").read_bytes()
    found, own = json.loads(files["results.json"]), results(tuned)
    for name in ("test", "search", "chosen", "flops", "train_images"):
        assert found[name] == own[name], name
    assert (found["encoder"], found["data"]) == ("tiny", "data of …")
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe["command"] == "finetune"
    assert (recipe["encoder"]["source"], recipe["search"]["lr"]) == ("tiny", [1e-3, 3e-3])


def test_timm_and_transformers_give_its_logits_and_its_class_names(
    tuned: Path, pushed: dict[str, bytes], online: ForkServer, tmp_path: Path
):
    ways = {"timm": f"hf-hub:{CLASSIFIER}", "names": f"hf-hub:{CLASSIFIER}"}
    ways |= dict.fromkeys(("classifier", "pipeline", "predict", "mpp"), CLASSIFIER)
    jobs = [f"{way}:a:{source}" for way, source in ways.items()]
    found, said = load_back(online, tmp_path, f"run:a:{tuned}", f"mpp:b:{tuned}", *jobs)
    assert set(found) == {"a/run", "b/mpp", *(f"a/{way}" for way in ways)}, said
    logits = found["a/run"]
    assert logits.shape == (3, 3)
    assert torch.equal(found["a/timm"], logits)
    torch.testing.assert_close(found["a/classifier"], logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["a/pipeline"], logits.softmax(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["a/predict"], logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(found["a/mpp"], found["b/mpp"]), "the encoder under it"
    assert re.findall(r"^names (.*)$", said, re.M) == [str(NAMES)] * 4


@pytest.mark.parametrize("family", ["distilled", "hybrid"])
def test_other_families_have_their_logits_too(
    family: str, online: ForkServer, home: Path, tinted_images: Path, push: Push, tmp_path: Path
):
    recipe = written(tmp_path / "r.yaml", FINETUNE.replace(ENCODER, FAMILIES[family]), tinted_images, home / family)
    size = "data.image_size=64" if family == "hybrid" else "data.image_size=16"
    good(online.run("mpp.finetune", recipe, ONE_STEP, size, "objective.head_init=normal", cwd=home))
    arrived(push(home / family, f"user/{family}-tuned"))
    jobs = [f"timm:a:hf-hub:user/{family}-tuned", f"classifier:a:user/{family}-tuned"]
    found, said = load_back(online, tmp_path, f"run:a:{home / family}", *jobs)
    assert torch.equal(found["a/timm"], found["a/run"]), said
    torch.testing.assert_close(found["a/classifier"], found["a/run"], rtol=1e-6, atol=1e-6)


def test_the_card_says_the_test_accuracy_and_that_it_classifies(tuned: Path, pushed: dict[str, bytes]):
    found, own = card(pushed["README.md"]), results(tuned)
    assert found.data.pipeline_tag == "image-classification"
    assert (found.data.library_name, found.data.license) == ("timm", "mit")
    assert {"timm", "transformers", "image-classification"} <= set(found.data.tags)
    [result] = found.data.eval_results
    assert result.metric_value == pytest.approx(100 * own["test"]["accuracy"], abs=0.005)
    assert (result.dataset_name, result.metric_type, result.task_type) == (
        "data of …", "accuracy", "image-classification",
    )  # fmt: skip
    text = found.text
    assert f"{100 * own['test']['accuracy']:.2f} %** of 45 images" in text
    assert re.search(r"\(standard error \d+\.\d points; chance is 33\.3 %\)", text)
    assert "Classes: one, two, three." in text
    assert "fine-tuned from tiny" in text
    assert f"of 2 runs: learning rate {own['chosen']['lr']:g}" in text
    assert f"{own['images_seen']:,} (12 steps of 16)" in text
    assert f"| optimiser | adamw, learning rate {own['chosen']['lr']:g}," in text, "the chosen one"
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(snippets) == 4
    for snippet in snippets:
        assert CLASSIFIER in snippet
        compile(snippet, "snippet", "exec")
    assert set(re.findall(r"\]\(([^)]+)\)", text)) <= set(pushed)


def test_the_card_of_a_classifier_from_scratch_and_of_a_trained_probe_say_so(
    run: Path, online: ForkServer, tinted_images: Path, push: Push, tmp_path: Path
):
    for name, changes, words in (
        ("scratch", (), "from random weights"),
        ("probe", (f"encoder={run}", "objective={kind: linear_probe}"), "linear layer on the frozen features of tiny"),
    ):
        recipe = written(tmp_path / f"{name}.yaml", FINETUNE, tinted_images, tmp_path / name)
        good(online.run("mpp.finetune", recipe, ONE_STEP, *changes, cwd=tmp_path))
        files = staged(push, tmp_path / name, tmp_path / f"{name}-out")
        assert words in card(files["README.md"]).text
        assert json.loads(files["results.json"])["encoder"] == (
            "tiny" if changes else "vit_tiny_patch16_224 from scratch"
        )


def test_what_is_no_classifier_of_timm_or_unfinished_is_refused(
    tuned: Path, push: Push, tmp_path: Path, online: ForkServer
):
    shutil.copytree(tuned, tmp_path / "begun")
    (tmp_path / "begun" / "results.json").unlink()
    said = push(tmp_path / "begun", CLASSIFIER, "--dry-run", "--folder", tmp_path / "out")
    assert said.code == 2
    assert "has not finished; give its command again" in said.text
    shutil.copytree(tuned, tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "classifier")
    said = push(tmp_path / "two", CLASSIFIER, "--dry-run", "--folder", tmp_path / "out")
    assert said.code == 2
    assert "objective.head=linear" in said.text
    assert not (tmp_path / "out").exists()


def test_load_objective_refuses_a_classifier_in_words(pushed: dict[str, bytes], online: ForkServer, tmp_path: Path):
    found, said = load_back(online, tmp_path, f"objective:a:{CLASSIFIER}")
    assert not found
    assert f"ValueError: {CLASSIFIER} is a classifier" in said


def test_a_folder_is_staged_anew_only_where_nobody_has_changed_it(run: Path, tuned: Path, push: Push, tmp_path: Path):
    folder = tmp_path / "out"
    first = staged(push, run, folder)
    assert "objective.safetensors" in first
    assert set(staged(push, tuned, folder)) == FILES, "another run's files are gone"
    assert staged(push, run, folder) == first
    (folder / "README.md").write_text("my own words")
    said = push(tuned, CLASSIFIER, "--dry-run", "--folder", folder)
    assert said.code == 2
    assert f"{folder / 'README.md'} was changed after it was staged" in " ".join(said.text.split())
    assert (folder / "README.md").read_text() == "my own words"
    (folder / "README.md").unlink()
    (folder / "results.json").write_text("{}")  # a name that could have been written, but was not
    said = push(run, CLASSIFIER, "--dry-run", "--folder", folder)
    assert said.code == 2
    assert "holds other things, e.g. results.json" in said.text
    assert (folder / "results.json").read_text() == "{}"
