"""Nothing local is in what is pushed, and the card tells the truth."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from mpp.hub.folder import WRITTEN
from tests.support.downstream import ENCODER, EVALUATE, PRETRAIN, good, tinted, written
from tests.support.forkserver import ForkServer
from tests.support.model_hub import WRITER, ModelHub
from tests.support.pushing import (
    FILES,
    NAME,
    ONE_STEP,
    PLANTED,
    Push,
    arrived,
    card,
    measured,
    staged,
)

# Nothing local


def local(run: Path, home: Path, *further: Path) -> dict[str, bytes]:
    """Everything that must not be anywhere."""
    names = {
        **PLANTED,
        "the token": WRITER,
        "host": socket.gethostname() if len(socket.gethostname()) > 5 else PLANTED["HOSTNAME"],
        "home": str(home),
        "its name": home.name,
        "temporary files": str(home.parent),
        "root of the checkout": str(Path(__file__).parent.parent.parent),
    }
    paths = {str(path): str(path) for path in (run, run.parent, *further)}
    return {what: text.encode() for what, text in {**names, **paths}.items()}


def check_clean(files: dict[str, bytes], forbidden: dict[str, bytes]) -> None:
    for name, content in files.items():
        parts = [content]
        if name.endswith(".png"):
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
                parts.append(repr(picture.info).encode())
        if name.endswith(".json"):
            parts.append(repr(json.loads(content)).encode())
        for what, text in forbidden.items():
            assert not any(text in part for part in parts), f"{what} is in {name}"


def test_the_folder_of_a_table_s_images_stays_here(home: Path, online: ForkServer, tmp_path: Path):
    photos = home / "photos of planted-alice"
    photos.mkdir()
    for name, image in tinted(40, 0):
        (photos / name).write_bytes(image)
    (home / "all.csv").write_text("\n".join(["file", *(path.name for path in photos.iterdir())]))
    recipe = written(home / "table.yaml", PRETRAIN, home / "all.csv", home / "runs" / "table")
    good(online.run("mpp.pretrain", recipe, ONE_STEP, f"data.image_folder={photos}", cwd=home))
    good(online.run("mpp.push", home / "runs" / "table", NAME, "--dry-run", "--folder", tmp_path / "staged", cwd=home))
    check_clean({path.name: path.read_bytes() for path in (tmp_path / "staged").iterdir()},
                local(home / "runs" / "table", home))  # fmt: skip
    pushed = yaml.safe_load((tmp_path / "staged" / "recipe.yaml").read_text())
    assert pushed["data"]["image_folder"] == "photos of …"


def test_nothing_local_is_in_what_was_pushed(run: Path, home: Path, hub: ModelHub, push: Push, tmp_path: Path):
    arrived(push(run, "user/clean", "--reconstructions"))
    sent = {f"{call} {number}": body for number, (call, body) in enumerate(hub.received)}
    files = {name: content for name, content in hub.repos["user/clean"].commits[-1].files.items() if name in FILES}
    forbidden = local(run, home, home / "data of planted-alice")
    check_clean(files, forbidden)
    check_clean(sent, forbidden)
    (tmp_path / "m").write_bytes(files["model.safetensors"])
    (tmp_path / "o").write_bytes(files["objective.safetensors"])
    for name in "mo":
        with safe_open(tmp_path / name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    uploads = {call for call, token in hub.tokens if call.startswith("PUT /lfs/") and token}
    assert not uploads, "the place where large files go to is not the Hub, and is not to see the token"


def test_nothing_local_is_in_a_run_that_began_from_a_path_and_was_tracked(
    run: Path, home: Path, online: ForkServer, tinted_images: Path, push: Push, tmp_path: Path
):
    child = home / "planted-host-17" / "child"
    recipe = written(home / "child.yaml", PRETRAIN, tinted_images, child)
    changes = (f"encoder={run / 'encoder'}", "journal.trackers=[tensorboard]", "reconstructions.images=2", ONE_STEP)
    good(online.run("mpp.pretrain", recipe, *changes, cwd=home))
    files = staged(push, child, tmp_path / "out", "--reconstructions")
    assert set(files) == FILES
    check_clean(files, local(child, home, run, tinted_images, child / "mpp"))
    resolved = yaml.safe_load(files["recipe.yaml"])
    assert resolved["encoder"]["source"] == "encoder"
    assert resolved["data"]["source"] == tinted_images.name
    assert resolved["output_dir"] == "runs/vit-tiny", "whatever it is called here"


def test_a_user_who_is_called_like_a_word_of_the_recipe_changes_nothing_else(run: Path, push: Push, tmp_path: Path):
    files = staged(push, run, tmp_path / "out")
    called = staged(push, run, tmp_path / "called", LOGNAME="encoder", USER="encoder", HOSTNAME="data")
    for name in ("config.json", "preprocessor_config.json", "metrics.jsonl"):
        assert called[name] == files[name]
    recipe, other = (yaml.safe_load(each["recipe.yaml"]) for each in (files, called))
    assert other | {"data": None} == recipe | {"data": None}


def test_a_relative_path_is_cut_wherever_the_push_is_made(
    home: Path, online: ForkServer, tinted_images: Path, push: Push, tmp_path: Path
):
    place = tmp_path / "elsewhere"
    shutil.copytree(tinted_images, place / "clients" / "secretive" / "scans")
    recipe = written(place / "r.yaml", PRETRAIN, "clients/secretive/scans", place / "run")
    good(online.run("mpp.pretrain", recipe, ONE_STEP, cwd=place))
    check_clean(staged(push, place / "run", tmp_path / "out"), {"the client": b"secretive"})


def test_a_secret_in_a_file_stops_the_push_before_anything_is_sent(run: Path, hub: ModelHub, push: Push):
    said = push(run, "user/leaky", SOME_SECRET="vit_tiny_patch16_224")
    assert said.code == 1
    assert "SOME_SECRET" in said.text
    assert "vit_tiny_patch16_224" not in said.text
    assert hub.asked == []


# The card


def test_the_card_s_metadata_says_licence_library_and_the_measured_results(published: dict[str, bytes], run: Path):
    data = card(published["README.md"]).data
    assert data.license == "apache-2.0"
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-feature-extraction"
    assert {"timm", "transformers", "mpp"} <= set(data.tags)
    scores = measured(run)["scores"]
    wanted = [score["mean"] for score in scores["few_shot"]["default"]["shots"].values()]
    wanted += list(scores["knn"]["default"]["k"].values())
    assert [result.metric_value for result in data.eval_results] == pytest.approx([100 * w for w in wanted], abs=0.005)
    assert len({result.metric_name for result in data.eval_results}) == len(wanted) == 4
    assert {result.dataset_name for result in data.eval_results} == {"data of …"}, "of whom is nobody else's business"
    assert {result.dataset_type for result in data.eval_results} == {"data-of-"}
    assert {result.task_type for result in data.eval_results} == {"image-classification"}


def test_the_card_names_the_repository_in_all_its_snippets_and_shows_pictures_that_are_there(
    published: dict[str, bytes],
):
    text = card(published["README.md"]).text
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(snippets) == 3
    for snippet, words in zip(snippets, ("timm.create_model", "AutoModel.from_pretrained", "mpp.load_"), strict=True):
        assert words in snippet
        assert NAME in snippet
        compile(snippet, "snippet", "exec")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert sorted(pictures) == ["loss.png", "reconstructions.png"]
    assert set(re.findall(r"\]\(([^)]+)\)", text)) <= set(published)
    for name in pictures:
        with Image.open(io.BytesIO(published[name])) as picture:
            assert min(picture.size) > 50


def test_the_card_says_what_was_trained_on_what_and_for_how_long(published: dict[str, bytes], run: Path):
    text = card(published["README.md"]).text
    state = json.loads((run / "checkpoints" / "step-000000008" / "state.json").read_text())
    assert "data of …, 90 images" in text
    assert "128 (8 steps of 16)" in text
    assert f"{128 * state['flops_per_image']:.2g} floating-point" in text
    assert state["hardware"] in text
    assert "mean colour" in text
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert f"**{last['validation/loss_mask']:.3f}**" in text
    for value in state["baselines"].values():
        assert f"{value:.3f}" in text
    few = measured(run)["scores"]["few_shot"]["default"]["shots"]["5"]
    assert f"| {100 * few['mean']:.1f} % ± {100 * few['std']:.1f} |" in text
    assert "mean of its patch tokens" in text
    assert "does not train the class token" in text
    assert "Limits" in text
    assert "@inproceedings{dosovitskiy2021image" in text


def test_the_card_of_an_unfinished_run_without_results_says_both(unfinished: Path, push: Push, tmp_path: Path):
    files = staged(push, unfinished, tmp_path / "out")
    found = card(files["README.md"])
    assert found.data.license is None
    assert not found.data.eval_results
    assert "4 of 8 steps" in found.text
    assert "not measured" in found.text
    lines = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    weights = load_file(unfinished / "checkpoints" / "step-000000004" / "weights.safetensors")
    bare = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, weights["encoder.vit." + name]) for name, tensor in bare.items())


def test_results_of_other_weights_are_not_those_of_the_card(run: Path, push: Push, tmp_path: Path):
    """The newest whole checkpoint is not the one that was evaluated."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000000008")
    said = arrived(push(tmp_path / "run", NAME, "--dry-run", "--folder", tmp_path / "out")).text
    assert f"1 evaluation of {tmp_path / 'run'} not shown on the card" in said
    assert f"mpp evaluate few_shot encoder={tmp_path / 'run'} data.source=LABELLED" in said
    assert f"{WRITTEN} lists these files for the next push into {tmp_path / 'out'}; it is not pushed" in said
    found = card((tmp_path / "out" / "README.md").read_bytes())
    assert not found.data.eval_results
    assert "An evaluation of other weights, such as an earlier checkpoint's" in found.text


def test_the_card_says_how_its_results_were_measured(published: dict[str, bytes]):
    found = card(published["README.md"])
    by_name = {result.metric_name: result for result in found.data.eval_results}
    few = by_name["linear few-shot, 5 a class"]
    assert few.dataset_split == "test"
    assert few.metric_args == {"shots": 5, "seeds": [0, 1], "l2": 1024.0, "train_images": 90, "pool": "avg"}
    assert by_name["5 nearest neighbours"].metric_args["temperature"] == 0.07
    assert "λ = 1024" in found.text
    assert "over 2 draws" in found.text


@pytest.mark.parametrize("setting", ["encoder.pool=token", "encoder.mean=[0,0,0]", "data.image_size=32"])
def test_results_at_other_settings_are_not_those_of_the_card(
    run: Path, home: Path, online: ForkServer, push: Push, tmp_path: Path, setting: str
):
    shutil.copytree(run, tmp_path / "run")
    recipe = written(tmp_path / "evaluate.yaml", EVALUATE, home / "data of planted-alice")
    good(online.run("mpp.evaluate", recipe, f"encoder={tmp_path / 'run'}", setting, cwd=home))
    found = card(staged(push, tmp_path / "run", tmp_path / "out")["README.md"])
    assert not found.data.eval_results
    assert "was not measured on these very weights, at this size and pool" in found.text


def test_the_card_of_a_run_that_began_from_others_weights_says_so(
    run: Path, online: ForkServer, tinted_images: Path, push: Push, tmp_path: Path
):
    recipe = written(tmp_path / "r.yaml", PRETRAIN.replace(ENCODER, "{}"), tinted_images, tmp_path / "child")
    good(online.run("mpp.pretrain", recipe, f"encoder={run / 'encoder'}", ONE_STEP, cwd=tmp_path))
    text = card(staged(push, tmp_path / "child", tmp_path / "out")["README.md"]).text
    assert "| began from | encoder |" in text
    assert "began from encoder" in text
    assert "alone" not in text


def test_a_folder_of_something_else_is_not_touched(run: Path, unfinished: Path, push: Push, tmp_path: Path):
    """Though all that is in it is called as what is pushed."""
    before = {path.name: path.read_bytes() for path in (unfinished / "encoder").iterdir()}
    said = push(run, NAME, "--dry-run", "--folder", unfinished / "encoder")
    assert said.code == 2
    assert "holds other things" in said.text
    assert {path.name: path.read_bytes() for path in (unfinished / "encoder").iterdir()} == before


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_results_that_are_damaged_are_named(run: Path, push: Push, tmp_path: Path, content: str):
    shutil.copytree(run, tmp_path / "run")
    (path,) = (tmp_path / "run").glob("evaluation/*/results.json")
    path.write_text(content)
    said = push(tmp_path / "run", NAME, "--dry-run")
    assert said.code == 2
    assert str(path) in said.text


def test_the_card_of_a_supervised_run_promises_nothing_that_is_not_there(supervised: Path, push: Push, tmp_path: Path):
    files = staged(push, supervised, tmp_path / "out")
    assert set(files) == FILES - {"reconstructions.png"}
    text = card(files["README.md"]).text
    assert "with labels" in text
    assert "reconstructions.png" not in text
    assert "load_objective" not in text, "which refuses it"


def test_a_run_whose_loss_was_lost_can_be_pushed_still(unfinished: Path, push: Push, tmp_path: Path):
    copy = tmp_path / "lost"
    shutil.copytree(unfinished, copy)
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[3] |= {"validation/loss": None, "validation/loss_mask": None}  # what is not finite is written so
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    staged(push, copy, tmp_path / "out")
