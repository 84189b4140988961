"""`mpp.push` against a server that speaks the Hub's calls: real processes, real requests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.forkserver import ForkServer
from tests.support.model_hub import EXPIRED, READER, Fault, ModelHub
from tests.support.pushing import (
    FILES,
    NAME,
    Push,
    arrived,
    failed,
    load_back,
    staged,
)

# A push and what comes back


def test_a_push_is_one_commit_of_the_listed_files(published: dict[str, bytes], hub: ModelHub):
    pushed = hub.repos[NAME].pushed
    assert [commit.message for commit in pushed] == ["Encoder of step 8"]
    assert set(published) - {".gitattributes"} == FILES, "and not the list of what was staged"
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
    found = staged(push, run, tmp_path / "out", "--license", "apache-2.0", "--reconstructions", token="")
    assert hub.asked == []
    assert {name: published[name] for name in FILES} == found
    shown = arrived(push(run, NAME, "--dry-run", "--folder", tmp_path / "out")).text
    assert hub.asked == []
    left = FILES - {"reconstructions.png"}
    assert set(re.findall(r"^ +[\d,]+  (\S+)$", shown, re.M)) == left, "pictures of local images stay here"
    assert "reconstructions.png is left out: it shows images of your data" in shown
    assert not (tmp_path / "out" / "reconstructions.png").exists()
    assert "reconstructions.png" not in (tmp_path / "out" / "README.md").read_text()
    assert "nothing was pushed" in shown
    assert f'timm.create_model("local-dir:{tmp_path / "out"}", pretrained=True)' in shown


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
    arrived(push(run, "user/fewer", "--reconstructions"))
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
        hub.faults.append(Fault("POST .*/paths-info/", 503, times=2))
    arrived(push(run, name))
    assert len(hub.repos[name].pushed) == 1
    assert set(hub.repos[name].commits[-1].files) >= FILES - {"reconstructions.png"}


def test_a_commit_that_was_made_is_not_made_twice_where_xet_is_installed(run: Path, hub: ModelHub, push: Push):
    hub.inline = True
    hub.faults = [Fault("POST .*/commit/", times=1, after=True)]
    arrived(push(run, "user/xet", XET="1"))
    assert len(hub.repos["user/xet"].pushed) == 1


def test_a_push_where_xet_is_installed_is_one_commit_too(run: Path, hub: ModelHub, push: Push):
    hub.inline = True
    arrived(push(run, "user/xet-plain", XET="1"))
    assert len(hub.repos["user/xet-plain"].pushed) == 1
    assert set(hub.repos["user/xet-plain"].commits[-1].files) >= FILES - {"reconstructions.png"}


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
