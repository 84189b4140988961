"""What a run leaves on real files, and that timm alone can read it."""

import hashlib
import json
import math
import os
import pty
import re
import resource
import termios
import threading
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from pyarrow import parquet

import mpp
from tests.support.forkserver import ForkServer, good, refused
from tests.support.reference import inputs_of, random_pixels
from tests.support.runs import (
    RECIPES,
    arguments,
    checkpoints,
    journal,
    losses,
    pretrain,
    pretrain_all,
    weights,
)


def exported(run):
    return timm.create_model(f"local-dir:{run}/encoder", pretrained=True).eval()


def assert_export_equals_run(run, size):
    """timm alone reloads what the run trained: same keys, same weights, same features to the last bit."""
    model, vit = exported(run), mpp.load_encoder(run).vit.eval()
    state, expected = model.state_dict(), vit.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model.forward_features(pixels), vit.forward_features(pixels))
    return model, pixels


def test_a_run_leaves_journal_recipe_checkpoints_encoder_and_pictures(finished):
    run, _, command = finished
    last = " ".join(command.text[command.text.index("\nfinished: ") :].split())
    assert re.match(r"finished: 120 steps, 960 images, [\d:]+, \d+ images/s loss on masked patches, held out: ", last)
    assert re.search(r"to be compared with: label frequencies \d\.\d{3}, visible neighbours \d\.\d{3} ", last)
    assert f"encoder: {run / 'encoder'} " in last
    assert f'next: timm.create_model("local-dir:{run / "encoder"}", pretrained=True)' in last
    assert {"metrics.jsonl", "recipe.yaml", "encoder", "checkpoints"} <= {p.name for p in run.iterdir()}
    assert {"config.json", "model.safetensors"} <= {p.name for p in (run / "encoder").iterdir()}
    pictures = list(run.rglob("*.png"))
    assert pictures
    for picture in pictures:
        Image.open(picture).verify()


def test_on_a_terminal_there_is_a_bar(commands: ForkServer, tiny_recipe: Path):
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    said: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(leader, 4096):
                said.append(piece)
        except OSError:  # nobody has it open any more
            return

    reader = threading.Thread(target=read)
    reader.start()
    command = commands.start("mpp.pretrain", tiny_recipe, terminal=os.ttyname(follower))
    code = command.wait()
    os.close(follower)
    reader.join(30)
    text = b"".join(said).decode()
    assert code == 0, text
    assert re.search(r"\r *100%\|█+\| 12/12 \[[^\r]*step/s, loss \d\.\d{3}\]", text), text
    assert re.search(r"\r *step +12/12  loss \d\.\d{3}  masked", text), text


def test_the_resolved_recipe_holds_what_was_set_and_can_be_loaded(finished):
    run, _, _ = finished
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert written["command"]
    assert written["seed"] == 0
    assert written["data"]["image_size"] == 16
    assert written["encoder"]["name"] == "test_vit"
    assert written["optimizer"]["lr"] == 1e-3
    duration = {unit: value for unit, value in written["training"]["duration"].items() if value is not None}
    assert duration == {"steps": 120}
    assert mpp.load_recipe(run / "recipe.yaml").optimizer.lr == 1e-3


def test_the_journal_names_the_loss_rate_baselines_and_a_validation(finished):
    run, _, _ = finished
    rows = journal(run)
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert steps[-1] == 120
    names = {name for row in rows for name in row}
    for part in ("loss", "mask", "swap", "keep", "lr", "images", "histogram", "neighbo", "grad"):
        assert any(part in name.lower() for name in names), f"nothing about {part} in {sorted(names)}"
    assert all(value == value for value in losses(run).values()), "no NaN"


def test_the_loss_falls_on_22_images(finished):
    run, _, _ = finished
    curve = [loss for _, loss in sorted(losses(run).items())]
    assert sum(curve[-3:]) / 3 < curve[0] - 0.5


def test_checkpoints_hold_no_pickle_and_the_last_three_are_kept(finished):
    run, _, _ = finished
    kept = checkpoints(run)
    assert 3 <= len(kept) <= 4
    files = [p for p in (run / "checkpoints").rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files)
    for path in files:
        assert path.suffix in (".safetensors", ".json"), path
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_every_checkpoint_names_the_sha256_of_its_files(finished):
    run, _, _ = finished
    for folder in checkpoints(run):
        manifests = " ".join(p.read_text() for p in folder.rglob("*.json"))
        for path in folder.rglob("*.safetensors"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in manifests


def test_timm_reloads_the_encoder_to_the_last_bit_and_pools_the_patches(finished):
    run, _, _ = finished
    config = json.loads((run / "encoder" / "config.json").read_text())
    model, pixels = assert_export_equals_run(run, 16)
    assert config["architecture"] == "test_vit"
    with torch.no_grad():
        assert torch.equal(model(pixels), model.forward_features(pixels)[:, 1:].mean(1))


def test_the_exported_mean_and_std_are_those_of_the_encoder_s_door(finished):
    run, _, _ = finished
    encoder = mpp.load_encoder(run)
    objective = mpp.MaskedPatchPrediction(encoder, target=mpp.MeanColor(), corruption=mpp.Corruption(), seed=0)
    pixels = random_pixels(2, 16)
    with torch.no_grad(), inputs_of(encoder.vit.patch_embed) as door:
        objective(pixels)
    config = timm.data.resolve_model_data_config(exported(run))
    mean, std = (torch.tensor(config[name]).double()[:, None, None] for name in ("mean", "std"))
    assert (door[0].double() - (pixels.double() / 255 - mean) / std).abs().max() < 2e-6
    assert config["input_size"] == (3, 16, 16)


def test_an_encoder_loads_alike_from_its_run_and_from_its_exported_folder(finished):
    run, _, _ = finished
    from_run, from_folder = mpp.load_encoder(run).vit.state_dict(), mpp.load_encoder(run / "encoder").vit.state_dict()
    assert from_run.keys() == from_folder.keys()
    assert all(torch.equal(from_run[name], from_folder[name]) for name in from_run)
    assert mpp.load_encoder(str(run)).vit.state_dict().keys() == from_run.keys()


FAMILIES = [  # recipe, encoder, image size, pool, settings that no other test trains with
    ("downsized.yaml", "deit_tiny_distilled_patch16_224", 32, "token", ["objective.head=mlp"]),
    ("full_patch.yaml", "vit_small_patch14_reg4_dinov2", 28, "avg", ["objective.target.normalize=true"]),
    ("supervised.yaml", "eva02_tiny_patch14_224", 28, "avg", ["training.clip_grad=null", "data.interpolation=bicubic"]),
    ("mean_color.yaml", "vit_tiny_r_s16_p8_224", 64, "token",
     ["encoder.attention=fused", "optimizer.name=sgd", "optimizer.arguments={momentum: 0.9}"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory, images):
    """One epoch of each family: folder of the runs and the commands by encoder."""
    folder, jobs = tmp_path_factory.mktemp("families"), {}
    for recipe, encoder, size, pool, further in FAMILIES:
        changes = [f"encoder.name={encoder}", f"encoder.pool={pool}", f"data.image_size={size}"]
        changes += ["encoder.patch_size=null", "training.duration.epochs=1", "training.micro_batch_size=4", *further]
        jobs[encoder] = (recipe, arguments(folder / encoder, images, *changes))
    return folder, pretrain_all(jobs)


@pytest.mark.parametrize(("encoder", "size", "pool"), [family[1:4] for family in FAMILIES])
def test_recipes_and_families_train_one_epoch_export_and_reload(one_epoch, encoder, size, pool):
    folder, commands = one_epoch
    run = folder / encoder
    good(commands[encoder])
    written = yaml.safe_load((run / "recipe.yaml").read_text())["training"]["duration"]
    assert {unit: value for unit, value in written.items() if value is not None} == {"epochs": 1}
    assert list(losses(run)) == [1, 2, 3], "22 images in batches of 8"
    assert all(math.isfinite(loss) for loss in losses(run).values())
    model, pixels = assert_export_equals_run(run, size)
    assert model.num_classes == 0
    with torch.no_grad():
        features = model.forward_features(pixels)
        if pool == "avg":
            assert torch.equal(model(pixels), features[:, model.num_prefix_tokens :].mean(1))
        elif "distilled" not in encoder:  # timm averages that model's two tokens
            assert torch.equal(model(pixels), features[:, 0])


def test_a_run_can_start_from_another_run_s_encoder(tmp_path, finished, images):
    first, _, _ = finished
    run = tmp_path / "run"
    changes = [f"encoder.source={first}", "optimizer.lr=1e-20", "optimizer.weight_decay=0"]
    settings = arguments(run, images, *changes, "training.duration.images=9")
    good(pretrain("full_patch.yaml", settings))
    assert max(losses(run)) == 2, "9 images in batches of 8"
    start, end = (exported(folder).state_dict() for folder in (first, run))
    assert start.keys() == end.keys()
    for name in start:
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "size", "changes"),
    [("cifar10", 32, []), ("imagenette224", 224, ["encoder.name=vit_tiny_patch16_224", "encoder.patch_size=null",
                                                  "encoder.arguments={}", "data.cache=false"])],
)  # fmt: skip
def test_real_parquet_files_train_out_of_the_box(real_data, tmp_path, name, size, changes):
    rows, small = parquet.read_table(real_data / name / "test.parquet"), tmp_path / name
    small.mkdir()
    parquet.write_table(rows.slice(0, 600), small / "train.parquet")
    parquet.write_table(rows.slice(600, 100), small / "test.parquet")
    settings = arguments(
        tmp_path / "run", small, f"data.image_size={size}", "training.duration.steps=3", "validation.images=16",
        "validation.baseline_images=64", *changes,
    )  # fmt: skip
    good(pretrain("mean_color.yaml", settings))
    assert_export_equals_run(tmp_path / "run", size)


def with_small_files(commands, size, settings):
    """A run whose process can write no file beyond so many bytes, which is how a full disk looks to it."""
    server, limit = commands.process.pid, resource.RLIMIT_FSIZE
    soft, hard = resource.prlimit(server, limit)
    resource.prlimit(server, limit, (size, hard))  # inherited by what is forked off it
    try:
        command = commands.start("mpp.pretrain", RECIPES / "mean_color.yaml", *settings)
    finally:
        resource.prlimit(server, limit, (soft, hard))
    command.wait()
    return command


def test_a_recipe_that_cannot_be_written_ends_in_one_message_that_says_what_to_do(commands, finished, images, tmp_path):
    run = tmp_path / "run"
    settings = arguments(run, images, "training.duration.steps=2")
    refused(with_small_files(commands, 1000, settings), "could not be written", "make room", "same command", code=1)
    assert {path.name for path in run.iterdir()} <= {".lock"}, "nothing that is half a recipe"
    good(pretrain("mean_color.yaml", settings))
    assert max(losses(run)) == 2


def test_a_journal_that_cannot_be_written_ends_in_one_message_that_says_what_to_do(
    commands, finished, images, tmp_path
):
    run = tmp_path / "run"
    settings = arguments(run, images, "training.duration.steps=60", "checkpoint.every.steps=0")
    refused(with_small_files(commands, 9000, settings), "could not be written", "make room", "same command", code=1)
    assert (run / "metrics.jsonl").stat().st_size == 9000, "it was the journal"
    assert not checkpoints(run)
    good(pretrain("mean_color.yaml", settings))
    assert sorted(losses(run)) == list(range(1, 61))


def test_a_run_that_cannot_go_on_for_want_of_room_is_left_as_it_was_and_goes_on_when_there_is(
    commands, finished, stopped
):
    stopped.restore()
    lines, saved = (stopped.run / "metrics.jsonl").read_bytes(), checkpoints(stopped.run)
    assert len(lines) > 9000
    command = with_small_files(commands, 9000, stopped.settings)
    refused(command, "could not be written", "make room", "same command", code=1)
    assert (stopped.run / "metrics.jsonl").read_bytes() == lines
    assert checkpoints(stopped.run) == saved
    good(stopped.again())
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])
