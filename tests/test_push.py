"""`mpp.push` and the ways back, against a server that speaks the Hub's calls: real processes, real requests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from tests.downstream import ENCODER, EVALUATE, FINETUNE, PRETRAIN, good, refused, results, written
from tests.forkserver import Command, ForkServer
from tests.model_hub import EXPIRED, READER, WRITER, Fault, ModelHub

FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "objective.safetensors",
    "metrics.jsonl",
    "loss.png",
    "reconstructions.png",
}
PLANTED = {
    "USER": "planted-alice",
    "LOGNAME": "planted-alice",
    "HOSTNAME": "planted-host-17",
    "WANDB_API_KEY": "planted-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "planted/wJalrXUtnFEMI/K7MDENG",
    "DATABASE_PASSWORD": "planted-correct-horse",
}
"""In the environment of every command here."""
IMPORTS = ("jinja2", "matplotlib.figure", "torch.utils.tensorboard", "tests.hurried_push", "tests.load_back",
           "mpp.hub.loading", "mpp.hub.staging", "mpp.hub.upload", "mpp.report.card", "mpp.jobs.finetune",
           "transformers.models.timm_wrapper.modeling_timm_wrapper",
           "transformers.models.auto.image_processing_auto")  # fmt: skip
FAMILIES = {
    "gap": "{name: vit_tiny_patch16_224, pool: avg, patch_size: 4, arguments: {embed_dim: 32, depth: 2, num_heads: 2}}",
    "distilled": "{name: deit_tiny_distilled_patch16_224, patch_size: 4, "
    "arguments: {embed_dim: 32, depth: 2, num_heads: 2}}",
    "hybrid": "{name: vit_tiny_r_s16_p8_224, arguments: {embed_dim: 32, depth: 1, num_heads: 2}}",
    "eva": "{name: eva02_tiny_patch14_224, patch_size: 4, arguments: {embed_dim: 32, depth: 2, num_heads: 2}}",
}
ONE_STEP = "training.duration.steps=1"
NAME = "user/vit-tiny"


@dataclass(frozen=True)
class Pushed:
    """What a push said, and how long it would have waited."""

    code: int | None
    text: str
    waits: list[float]


Push = Callable[..., Pushed]


@pytest.fixture(scope="module")
def hub() -> Iterator[ModelHub]:
    with ModelHub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def nothing_wrong(hub: ModelHub) -> None:
    hub.forget()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all of this machine's things lie, with a telling name."""
    return tmp_path_factory.mktemp("planted-alice-home")


@pytest.fixture(scope="module")
def online(hub: ModelHub, home: Path) -> Iterator[ForkServer]:
    """Runs commands that know the server as the Hub."""
    kept = {
        name: value for name, value in os.environ.items() if not re.match(r"HF_|HUGGING|MPP_|WORLD_SIZE|RANK", name)
    }
    libraries = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "HF_TOKEN": WRITER,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONUNBUFFERED": "1",
    }
    server = ForkServer(home.parent, IMPORTS, kept | PLANTED | libraries)
    yield server
    server.process.kill()  # it has nothing to put in order, and takes seconds for that
    server.close()


@pytest.fixture(scope="module")
def push(online: ForkServer, home: Path) -> Push:
    """Push a run; whatever comes of it, the run is not changed, and no token is told."""

    def push(run: Path, repo_id: str, *options: object, token: str = WRITER, **env: str) -> Pushed:
        before = snapshot(run)
        waits = home / "waits"
        waits.unlink(missing_ok=True)
        command = online.run(
            "tests.hurried_push", run, repo_id, *options, cwd=home, HF_TOKEN=token, WAITS=str(waits), **env
        )
        assert "Traceback" not in command.text, command.text
        assert snapshot(run) == before, "the run was changed"
        for secret in (WRITER, READER, EXPIRED, *(PLANTED[name] for name in PLANTED if "KEY" in name)):
            assert secret not in command.text
        return Pushed(
            command.code, command.text, [float(w) for w in waits.read_text().split()] if waits.exists() else []
        )

    return push


def snapshot(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def arrived(pushed: Pushed) -> Pushed:
    assert pushed.code == 0, pushed.text
    return pushed


def failed(pushed: Pushed, *words: str, code: int = 1) -> Pushed:
    """One message that says what to do."""
    assert pushed.code == code, f"{pushed.code}: {pushed.text}"
    assert pushed.text.count("error: ") == 1, pushed.text
    message = pushed.text[pushed.text.index("error: ") :]
    for word in (*words, "same command again"):
        assert word in message, f"{word!r} is not in:\n{pushed.text}"
    return pushed


@pytest.fixture(scope="module")
def run(online: ForkServer, home: Path, tinted_images: Path) -> Path:
    """A finished run of 8 steps with a class token, saved after 4 and 8, and evaluated."""
    shutil.copytree(tinted_images, home / "data of planted-alice")
    text = PRETRAIN.replace("reconstructions: {images: 0}", "reconstructions: {images: 2}")
    recipe = written(home / "pretrain.yaml", text, home / "data of planted-alice", home / "runs" / "tiny")
    good(online.run("mpp.pretrain", recipe, cwd=home))
    recipe = written(home / "evaluate.yaml", EVALUATE, home / "data of planted-alice")
    good(online.run("mpp.evaluate", recipe, f"encoder={home / 'runs' / 'tiny'}", cwd=home))
    return home / "runs" / "tiny"


@pytest.fixture(scope="module")
def unfinished(run: Path, home: Path) -> Path:
    """The same run when half of it was done, and nothing evaluated."""
    half = home / "runs" / "half"
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoints" / "step-000000008")
    shutil.rmtree(half / "evaluation")
    return half


@pytest.fixture(scope="module")
def published(run: Path, hub: ModelHub, push: Push) -> dict[str, bytes]:
    """The files of a push of the run as `NAME`."""
    hub.forget()
    arrived(push(run, NAME, "--license", "apache-2.0"))
    return hub.repos[NAME].commits[-1].files


@pytest.fixture(scope="module")
def others(
    run: Path, online: ForkServer, home: Path, tinted_images: Path, hub: ModelHub, push: Push
) -> dict[str, Path]:
    """Runs of one step of other families, pushed as `user/FAMILY`."""
    runs = {}
    for name, encoder in FAMILIES.items():
        size = "data.image_size=64" if name == "hybrid" else "data.image_size=16"
        recipe = written(home / f"{name}.yaml", PRETRAIN.replace(ENCODER, encoder), tinted_images, home / "runs" / name)
        good(online.run("mpp.pretrain", recipe, ONE_STEP, size, cwd=home))
        arrived(push(home / "runs" / name, f"user/{name}"))
        runs[name] = home / "runs" / name
    return runs


@pytest.fixture(scope="module")
def supervised(online: ForkServer, home: Path, tinted_images: Path) -> Path:
    text = PRETRAIN.replace("kind: masked_patch", "kind: supervised")
    recipe = written(home / "supervised.yaml", text, tinted_images, home / "runs" / "supervised")
    good(online.run("mpp.pretrain", recipe, ONE_STEP, cwd=home))
    return home / "runs" / "supervised"


def load_back(online: ForkServer, folder: Path, *jobs: str, **env: str) -> tuple[dict[str, torch.Tensor], str]:
    command = good(online.run("tests.load_back", folder / "found.safetensors", *jobs, cwd=folder, **env))
    return load_file(folder / "found.safetensors"), command.text


def measured(run: Path) -> dict[str, Any]:
    """The one evaluation of a run."""
    (folder,) = (run / "evaluation").iterdir()
    return results(folder)


def staged(push: Push, run: Path, folder: Path, *options: object, **env: str) -> dict[str, bytes]:
    arrived(push(run, NAME, "--dry-run", "--folder", folder, *options, **env))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def card(text: bytes | str) -> Any:
    return ModelCard(text.decode() if isinstance(text, bytes) else text)


# A push and what comes back


def test_a_push_is_one_commit_of_the_listed_files(published: dict[str, bytes], hub: ModelHub):
    pushed = hub.repos[NAME].pushed
    assert [commit.message for commit in pushed] == ["Encoder of step 8"]
    assert set(published) - {".gitattributes"} == FILES
    assert pushed[0].large == {name for name in FILES if name.endswith((".safetensors", ".png"))}
    assert not hub.repos[NAME].private
    assert set(hub.repos[NAME].branches) == {"main"}
    assert hub.repos[NAME].tags == {}


def test_what_comes_back_is_the_encoder_to_the_last_bit_by_every_way(
    published: dict[str, bytes], run: Path, others: dict[str, Path], hub: ModelHub, online: ForkServer, tmp_path: Path
):
    hub.forget()
    runs = {"vit-tiny": run, **others}
    local = [f"{way}:{name}:{path}" for name, path in runs.items() for way in ("checkpoint", "predictions")]
    jobs = [f"timm:{name}:hf-hub:user/{name}" for name in runs]
    jobs += [f"{way}:{name}:user/{name}" for name in runs for way in ("transformers", "processor", "mpp", "objective")]
    found, said = load_back(online, tmp_path, *local, *jobs)
    problems = []
    for name in runs:
        truth = found[f"{name}/checkpoint"]
        assert truth.std() > 0
        for way in ("timm", "transformers", "mpp", "objective"):
            got = found.get(f"{name}/{way}")
            if got is None or not torch.equal(got, truth):
                problems.append(f"{name}/{way}")
        if f"{name}/processor" not in found or found[f"{name}/processor"].item() > 1e-6:
            problems.append(f"{name}/processor")
    assert not problems, f"{problems}\n{said}"
    assert not [call for call in hub.asked if not call.startswith(("GET", "HEAD"))], "loading only reads"
    assert not [call for call in hub.asked if call.endswith((".py", ".bin")) and call.startswith("GET")]
    again, said = load_back(online, tmp_path, *[f"predictions:{name}:user/{name}" for name in runs])
    for name in runs:
        assert torch.equal(again[f"{name}/predictions"], found[f"{name}/predictions"]), said


def test_the_bare_encoder_and_the_rest_of_the_objective_lie_in_files_of_their_own(
    published: dict[str, bytes], run: Path
):
    saved = load_file(run / "checkpoints" / "step-000000008" / "weights.safetensors")
    (run.parent / "model").write_bytes(published["model.safetensors"])
    (run.parent / "rest").write_bytes(published["objective.safetensors"])
    bare, rest = load_file(run.parent / "model"), load_file(run.parent / "rest")
    assert {"encoder.vit." + name for name in bare} | set(rest) == set(saved)
    assert "mask_token" in rest
    assert all(torch.equal(tensor, saved["encoder.vit." + name]) for name, tensor in bare.items())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in rest.items())


# What the command can do


def test_private_branch_and_tag_are_what_was_asked_for(run: Path, hub: ModelHub, push: Push):
    said = arrived(push(run, "user/all", "--private", "--branch", "second", "--tag", "v1", "--message", "Mine")).text
    repo = hub.repos["user/all"]
    assert repo.private
    assert set(repo.branches) == {"main", "second"}
    assert repo.branches["main"] == repo.commits[0].oid
    assert [commit.message for commit in repo.pushed] == ["Mine"]
    assert repo.branches["second"] == repo.tags["v1"] == repo.commits[-1].oid
    assert f"{hub.endpoint}/user/all/tree/second" in said


def test_a_dry_run_writes_the_folder_and_asks_nothing_of_the_server(
    run: Path, hub: ModelHub, push: Push, tmp_path: Path, published: dict[str, bytes]
):
    hub.forget()
    found = staged(push, run, tmp_path / "out", "--license", "apache-2.0", token="")
    assert hub.asked == []
    assert {name: published[name] for name in FILES} == found
    shown = arrived(push(run, NAME, "--dry-run")).text
    assert hub.asked == []
    assert set(re.findall(r"^ +[\d,]+  (\S+)$", shown, re.M)) == FILES
    assert "nothing was pushed" in shown


def test_staging_leaves_other_things_in_a_folder_alone(run: Path, push: Push, tmp_path: Path, hub: ModelHub):
    (tmp_path / "mine.txt").write_text("mine")
    said = push(run, NAME, "--dry-run", "--folder", tmp_path)
    assert said.code == 2
    assert "mine.txt" in said.text
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert hub.asked == []


@pytest.mark.parametrize("inside", ["", "encoder"])
def test_staging_into_the_run_is_refused(inside: str, run: Path, push: Push, tmp_path: Path):
    shutil.copytree(run, tmp_path / "copy")
    said = push(tmp_path / "copy", NAME, "--dry-run", "--folder", tmp_path / "copy" / inside)
    assert said.code == 2, said.text


def test_pushing_does_not_disturb_a_run_that_is_writing_a_checkpoint(unfinished: Path, push: Push, tmp_path: Path):
    copy = tmp_path / "running"
    shutil.copytree(unfinished, copy)
    draft = copy / "checkpoints" / ".draft-000000008"
    draft.mkdir()
    (draft / "weights.safetensors").write_bytes(b"half of it")
    arrived(push(copy, NAME, "--dry-run"))


def test_the_same_push_again_makes_no_second_commit_and_more_training_makes_one(
    run: Path, unfinished: Path, hub: ModelHub, push: Push
):
    arrived(push(unfinished, "user/again"))
    assert "already" in arrived(push(unfinished, "user/again")).text
    assert [commit.message for commit in hub.repos["user/again"].pushed] == ["Encoder of step 4"]
    arrived(push(run, "user/again"))
    assert "already" in arrived(push(run, "user/again")).text
    assert [commit.message for commit in hub.repos["user/again"].pushed] == ["Encoder of step 4", "Encoder of step 8"]


def test_a_tag_that_stands_elsewhere_is_told_or_moved(run: Path, unfinished: Path, hub: ModelHub, push: Push):
    arrived(push(unfinished, "user/tagged", "--tag", "v1"))
    said = push(run, "user/tagged", "--tag", "v1")
    repo = hub.repos["user/tagged"]
    assert repo.tags["v1"] == repo.commits[-1].oid or (said.code != 0 and "v1" in said.text), said.text


def test_private_is_not_pushed_to_a_repository_that_is_public(run: Path, hub: ModelHub, push: Push):
    hub.create("user/public")
    said = push(run, "user/public", "--private")
    repo = hub.repos["user/public"]
    assert repo.private or (repo.pushed == [] and "public" in said.text), said.text


def test_a_file_that_is_no_longer_part_of_it_goes(run: Path, unfinished: Path, hub: ModelHub, push: Push):
    arrived(push(run, "user/fewer"))
    arrived(push(unfinished, "user/fewer"))
    assert set(hub.repos["user/fewer"].commits[-1].files) & FILES == FILES - {"reconstructions.png"}
    assert len(hub.repos["user/fewer"].pushed) == 2


def test_a_damaged_checkpoint_is_told(run: Path, push: Push, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run" / "checkpoints" / "step-000000008" / "weights.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    said = push(tmp_path / "run", NAME, "--dry-run")
    assert "step-000000008" in said.text, said.text


def test_what_is_no_name_no_run_or_no_pre_training_is_refused_before_anything_is_asked(
    run: Path, push: Push, hub: ModelHub, tmp_path: Path
):
    for name in ("justname", "a/b/c"):
        said = push(run, name)
        assert said.code == 2, said.text
        assert name in said.text
    said = push(tmp_path, NAME)
    assert said.code == 2
    assert "is no run" in said.text
    assert hub.asked == []


# What can go wrong


def test_a_busy_hub_is_asked_again(run: Path, hub: ModelHub, push: Push):
    hub.faults = [Fault("POST /api/repos/create", 429, times=1), Fault("POST .*/commit/", 503, times=1)]
    arrived(push(run, "user/busy"))
    assert len(hub.repos["user/busy"].pushed) == 1


def test_a_hub_that_stays_busy_ends_in_a_message_and_the_push_can_be_repeated(run: Path, hub: ModelHub, push: Push):
    hub.faults = [Fault("POST /api/repos/create", 429)]
    failed(push(run, "user/refusing"), "429")
    assert "user/refusing" not in hub.repos
    hub.faults = []
    arrived(push(run, "user/refusing"))
    assert len(hub.repos["user/refusing"].pushed) == 1


def test_the_wait_that_the_hub_asks_for_is_kept(run: Path, hub: ModelHub, push: Push):
    hub.faults = [Fault("POST /api/repos/create", 429, times=1, headers={"Retry-After": "37"})]
    assert max(arrived(push(run, "user/patient")).waits) >= 37


@pytest.mark.parametrize("answer", ["a 500", "no answer", "a 500, and the look whether it was made fails too"])
def test_a_commit_that_was_made_in_spite_of_the_answer_is_not_made_twice(
    answer: str, run: Path, hub: ModelHub, push: Push
):
    name = "user/" + re.sub(r"\W+", "-", answer)
    hub.faults = [Fault("POST .*/commit/", times=1, after=True, cut="no" in answer)]
    if "look" in answer:
        hub.create(name)
        hub.faults.append(Fault("POST .*/paths-info/", 503, times=3))
    arrived(push(run, name))
    assert len(hub.repos[name].pushed) == 1
    assert set(hub.repos[name].commits[-1].files) >= FILES


def test_a_commit_that_was_made_is_not_made_twice_where_xet_is_installed(run: Path, hub: ModelHub, push: Push):
    hub.inline = True
    hub.faults = [Fault("POST .*/commit/", times=1, after=True)]
    arrived(push(run, "user/xet", XET="1"))
    assert len(hub.repos["user/xet"].pushed) == 1


def test_a_push_where_xet_is_installed_is_one_commit_too(run: Path, hub: ModelHub, push: Push):
    hub.inline = True
    arrived(push(run, "user/xet-plain", XET="1"))
    assert len(hub.repos["user/xet-plain"].pushed) == 1
    assert set(hub.repos["user/xet-plain"].commits[-1].files) >= FILES


def test_a_connection_that_is_cut_in_an_upload_is_made_anew(run: Path, hub: ModelHub, push: Push):
    hub.faults = [Fault("PUT /lfs/", cut=True, times=1), Fault("POST .*/commit/", cut=True, times=1)]
    arrived(push(run, "user/cut"))
    assert len(hub.repos["user/cut"].pushed) == 1


def test_uploads_that_are_always_cut_end_in_a_message_and_no_commit(run: Path, hub: ModelHub, push: Push):
    hub.faults = [Fault("PUT /lfs/", cut=True)]
    failed(push(run, "user/cut-off"), "cannot be reached")
    assert hub.repos["user/cut-off"].pushed == []
    hub.faults = []
    arrived(push(run, "user/cut-off"))
    assert len(hub.repos["user/cut-off"].pushed) == 1


def test_an_expired_token_is_told_with_what_to_do(run: Path, hub: ModelHub, push: Push):
    said = failed(push(run, "user/expired", token=EXPIRED), "token", "expired", "hf auth login", "HF_TOKEN")
    assert said.waits == []
    assert "user/expired" not in hub.repos


def test_no_token_is_told_with_what_to_do(run: Path, hub: ModelHub, push: Push):
    failed(push(run, "user/anonymous", token=""), "token", "hf auth login", "HF_TOKEN")
    assert "user/anonymous" not in hub.repos


@pytest.mark.parametrize("exists", [False, True])
def test_a_token_without_the_right_is_told_with_what_to_do(exists: bool, run: Path, hub: ModelHub, push: Push):
    name = f"user/not-mine-{exists}"
    if exists:
        hub.create(name)
    said = failed(push(run, name, token=READER), name, "right", "403")
    assert said.waits == []
    assert exists is (name in hub.repos)
    assert not exists or hub.repos[name].pushed == []


def test_no_network_is_told_and_the_push_can_be_repeated(run: Path, hub: ModelHub, push: Push):
    with hub.unplugged():
        failed(push(run, "user/offline"), "cannot be reached")
    arrived(push(run, "user/offline"))
    assert len(hub.repos["user/offline"].pushed) == 1


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
        "root of the checkout": str(Path(__file__).parent.parent),
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


def test_nothing_local_is_in_what_was_pushed(run: Path, home: Path, hub: ModelHub, push: Push, tmp_path: Path):
    arrived(push(run, "user/clean"))
    sent = {f"{call} {number}": body for number, (call, body) in enumerate(hub.received)}
    files = {name: content for name, content in hub.repos["user/clean"].commits[-1].files.items() if name in FILES}
    forbidden = local(run, home, home / "data of planted-alice")
    del forbidden["USER"], forbidden["LOGNAME"]  # the data's name is the user's own
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
    files = staged(push, child, tmp_path / "out")
    assert set(files) == FILES
    check_clean(files, local(child, home, run, tinted_images, child / "mpp"))
    resolved = yaml.safe_load(files["recipe.yaml"])
    assert resolved["encoder"]["source"] == "encoder"
    assert resolved["data"]["source"] == tinted_images.name
    assert resolved["output_dir"] == "runs/child"


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
    assert {result.dataset_name for result in data.eval_results} == {"data of planted-alice"}
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
    assert "data of planted-alice, 90 images" in text
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
    found = card(staged(push, tmp_path / "run", tmp_path / "out")["README.md"])
    assert not found.data.eval_results


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


# Coming back


@pytest.fixture(scope="module")
def two_states(run: Path, unfinished: Path, hub: ModelHub, push: Push) -> str:
    """A repository with the end of the run on main and its middle on a branch and under a tag."""
    hub.forget()
    arrived(push(run, "user/two"))
    arrived(push(unfinished, "user/two", "--branch", "middle", "--tag", "v0.5"))
    return "user/two"


def test_a_revision_can_be_pinned(
    two_states: str, run: Path, unfinished: Path, hub: ModelHub, online: ForkServer, tmp_path: Path
):
    oid = hub.repos[two_states].branches["middle"]
    jobs = [f"mpp:{i}:{two_states}@{revision}" for i, revision in enumerate(("middle", "v0.5", oid, "main"))]
    jobs += [f"predictions:pinned:{two_states} middle", f"predictions:here:{unfinished}"]
    found, said = load_back(online, tmp_path, f"checkpoint:end:{run}", f"checkpoint:middle:{unfinished}", *jobs)
    assert not torch.equal(found["end/checkpoint"], found["middle/checkpoint"])
    for i in range(3):
        assert torch.equal(found[f"{i}/mpp"], found["middle/checkpoint"]), said
    assert torch.equal(found["3/mpp"], found["end/checkpoint"])
    assert torch.equal(found["pinned/predictions"], found["here/predictions"])


def test_an_objective_s_revision_can_be_pinned_as_an_encoder_s_can(
    two_states: str, unfinished: Path, online: ForkServer, tmp_path: Path
):
    found, said = load_back(online, tmp_path, f"objective:a:{two_states}@middle", f"checkpoint:b:{unfinished}")
    assert "a/objective" in found, said
    assert torch.equal(found["a/objective"], found["b/checkpoint"])


def test_what_is_not_there_is_one_clear_error(two_states: str, hub: ModelHub, online: ForkServer, tmp_path: Path):
    hub.create("user/secret", private=True)
    hub.create("user/empty")
    sources = {
        "unknown": "user/nowhere", "revision": f"{two_states}@nowhere", "private": "user/secret", "empty": "user/empty",
    }  # fmt: skip
    jobs = [f"{way}:{name}:{source}" for name, source in sources.items() for way in ("mpp", "objective")]
    found, said = load_back(online, tmp_path, *jobs, HF_TOKEN="")
    assert found == {}
    for name, source in sources.items():
        for way in ("mpp", "objective"):
            (line,) = re.findall(rf"^{name}/{way}: (.*)$", said, re.M)
            assert line.startswith("ValueError: "), line
            assert source.split("@")[0] in line


def test_no_network_is_one_clear_error(hub: ModelHub, online: ForkServer, tmp_path: Path):
    with hub.unplugged():
        found, said = load_back(online, tmp_path, "mpp:a:user/never-seen", "objective:a:user/never-seen")
    assert found == {}
    assert len(re.findall(r"^a/(?:mpp|objective): ValueError: .*user/never-seen", said, re.M)) == 2, said


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "unpickled")


def pickled(thing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def test_a_pickle_from_the_hub_is_never_run(
    published: dict[str, bytes], hub: ModelHub, online: ForkServer, tmp_path: Path
):
    traces = [tmp_path / "zip", tmp_path / "plain"]
    evil = {"zip": pickled({"cls_token": Mischief(traces[0])}), "plain": pickle.dumps(Mischief(traces[1]))}
    for name, content in evil.items():
        hub.create(f"user/evil-{name}", {"config.json": published["config.json"], "pytorch_model.bin": content})
    found, said = load_back(online, tmp_path, *[f"mpp:{name}:user/evil-{name}" for name in evil])
    assert found == {}
    assert len(re.findall(r"/mpp: ValueError: ", said)) == 2, said
    assert not any(trace.exists() for trace in traces)


def test_a_harmless_pickle_from_the_hub_is_refused_too(
    published: dict[str, bytes], run: Path, hub: ModelHub, online: ForkServer, tmp_path: Path
):
    weights = load_file(run / "encoder" / "model.safetensors")
    hub.create("user/old-form", {"config.json": published["config.json"], "pytorch_model.bin": pickled(weights)})
    found, said = load_back(online, tmp_path, "mpp:a:user/old-form")
    assert found == {}, "a pickle was read, and nobody had asked for one"
    assert re.search(r"ValueError: .*user/old-form", said)


def test_code_from_the_hub_is_never_fetched(
    published: dict[str, bytes], hub: ModelHub, online: ForkServer, tmp_path: Path
):
    config = json.loads(published["config.json"]) | {"auto_map": {"AutoModel": "modeling.Evil"}}
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).write_text('ran')\nclass Evil: pass\n"
    files = {**published, "config.json": json.dumps(config).encode(), "modeling.py": code.encode()}
    hub.create("user/code", files)
    found, said = load_back(online, tmp_path, "mpp:a:user/code", "objective:a:user/code")
    assert set(found) == {"a/mpp", "a/objective"}, said
    assert not (tmp_path / "ran").exists()
    assert not [call for call in hub.asked if call.endswith("modeling.py")]


def test_a_config_from_the_hub_cannot_point_elsewhere(
    published: dict[str, bytes], hub: ModelHub, online: ForkServer, tmp_path: Path
):
    """Its arguments are an architecture's; a path or an address among them is not followed."""
    (tmp_path / "mine.safetensors").write_bytes(save({"cls_token": torch.ones(1, 1, 32)}))
    for name, more in {
        "path": {"checkpoint_path": str(tmp_path / "mine.safetensors")},
        "overlay": {"pretrained_cfg_overlay": {"hf_hub_id": "user/evil-zip", "source": "hf-hub"}},
    }.items():
        config = json.loads(published["config.json"])
        config["model_args"] |= more
        hub.create(f"user/points-{name}", {**published, "config.json": json.dumps(config).encode()})
    found, said = load_back(online, tmp_path, "mpp:a:user/points-path", "mpp:b:user/points-overlay", f"mpp:c:{NAME}")
    for name in "ab":
        assert f"{name}/mpp" not in found or torch.equal(found[f"{name}/mpp"], found["c/mpp"]), said


# As a start


def tiny(online: ForkServer, module: str, text: str, data: Path, folder: Path, *changes: str) -> Command:
    recipe = written(folder / f"{module}.yaml", text.replace(ENCODER, "{}"), data, folder / module)
    return online.run(module, recipe, *changes, cwd=folder)


def test_pre_training_starts_from_the_hub(
    two_states: str, unfinished: Path, online: ForkServer, tinted_images: Path, tmp_path: Path
):
    still = ("optimizer.lr=1.0e-30", "optimizer.weight_decay=0", ONE_STEP)
    good(tiny(online, "mpp.pretrain", PRETRAIN, tinted_images, tmp_path, f"encoder={two_states}@middle", *still))
    started = load_file(tmp_path / "mpp.pretrain" / "encoder" / "model.safetensors")
    before = load_file(unfinished / "checkpoints" / "step-000000004" / "weights.safetensors")
    for name, tensor in started.items():
        torch.testing.assert_close(tensor, before["encoder.vit." + name], rtol=0, atol=1e-12)
    recipe = yaml.safe_load((tmp_path / "mpp.pretrain" / "recipe.yaml").read_text())
    assert recipe["encoder"]["source"] == f"{two_states}@middle"


def test_evaluation_and_fine_tuning_start_from_the_hub(
    two_states: str, run: Path, online: ForkServer, tinted_images: Path, tmp_path: Path
):
    good(tiny(online, "mpp.evaluate", EVALUATE, tinted_images, tmp_path, f"encoder={two_states}"))
    (found,) = tmp_path.glob("runs/evaluation/**/results.json")
    assert results(found.parent)["scores"] == measured(run)["scores"]
    assert results(found.parent)["encoder"] == two_states
    steps = "training.duration.steps=1"
    good(tiny(online, "mpp.finetune", FINETUNE, tinted_images, tmp_path, f"encoder={two_states}", steps))


def test_a_start_that_is_not_there_is_refused_in_one_message(online: ForkServer, tinted_images: Path, tmp_path: Path):
    for module, text in (("mpp.pretrain", PRETRAIN), ("mpp.evaluate", EVALUATE), ("mpp.finetune", FINETUNE)):
        refused(tiny(online, module, text, tinted_images, tmp_path, "encoder=user/nowhere"), "user/nowhere")
