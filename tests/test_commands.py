"""Whole commands on real files: what a run leaves, and that no stop leaves a trace."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
import yaml
from PIL import Image
from pyarrow import parquet

import mpp
from tests.reference import inputs_of, random_pixels
from tests.runs import (
    RECIPES,
    Process,
    alone,
    arguments,
    assert_refused,
    assert_succeeds,
    checkpoints,
    environment,
    journal,
    largest_file,
    launched,
    launched_twice,
    losses,
    pretrain,
    pretrain_all,
    progress,
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


# what a run leaves


def test_a_run_leaves_journal_recipe_checkpoints_encoder_and_pictures(finished):
    run, _, result = finished
    assert str(run / "encoder") in result.output
    assert {"metrics.jsonl", "recipe.yaml", "encoder", "checkpoints"} <= {p.name for p in run.iterdir()}
    assert {"config.json", "model.safetensors"} <= {p.name for p in (run / "encoder").iterdir()}
    pictures = list(run.rglob("*.png"))
    assert pictures
    for picture in pictures:
        Image.open(picture).verify()


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


def test_timm_reloads_the_encoder_to_the_last_bit_and_pools_the_class_token(finished):
    run, _, _ = finished
    config = json.loads((run / "encoder" / "config.json").read_text())
    model, pixels = assert_export_equals_run(run, 16)
    assert config["architecture"] == "test_vit"
    with torch.no_grad():
        pooled = model.forward_features(pixels)[:, 0]
        if yaml.safe_load((run / "recipe.yaml").read_text())["encoder"]["pool"] == "avg":
            pooled = model.forward_features(pixels)[:, 1:].mean(1)
        assert torch.equal(model(pixels), pooled)


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


FAMILIES = [  # recipe, encoder, image size, pool
    ("downsized.yaml", "deit_tiny_distilled_patch16_224", 32, "token"),
    ("full_patch.yaml", "vit_small_patch14_reg4_dinov2", 28, "avg"),
    ("supervised.yaml", "eva02_tiny_patch14_224", 28, "avg"),
    ("mean_color.yaml", "vit_tiny_r_s16_p8_224", 64, "token"),
]


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory, images):
    """One epoch of each family: folder of the runs and the results by encoder."""
    folder, jobs = tmp_path_factory.mktemp("families"), {}
    for recipe, encoder, size, pool in FAMILIES:
        changes = [f"encoder.name={encoder}", f"encoder.pool={pool}", f"data.image_size={size}"]
        changes += ["encoder.patch_size=null", "training.duration.epochs=1", "training.micro_batch_size=4"]
        jobs[encoder] = (recipe, arguments(folder / encoder, images, *changes))
    return folder, pretrain_all(jobs, folder)


@pytest.mark.parametrize(("encoder", "size", "pool"), [family[1:] for family in FAMILIES])
def test_recipes_and_families_train_one_epoch_export_and_reload(one_epoch, encoder, size, pool):
    folder, results = one_epoch
    run = folder / encoder
    assert_succeeds(results[encoder])
    written = yaml.safe_load((run / "recipe.yaml").read_text())["training"]["duration"]
    assert {unit: value for unit, value in written.items() if value is not None} == {"epochs": 1}
    assert max(losses(run)) == 3, "22 images in batches of 8"
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
    assert_succeeds(pretrain("full_patch.yaml", settings, tmp_path))
    assert max(losses(run)) == 2, "9 images in batches of 8"
    start, end = (exported(folder).state_dict() for folder in (first, run))
    assert start.keys() == end.keys()
    for name in start:
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-15)


# the same again


def test_a_finished_run_says_so_and_is_left_alone(finished):
    run, settings, _ = finished
    before = (weights(run), (run / "metrics.jsonl").read_bytes())
    result = pretrain("mean_color.yaml", settings, run.parent)
    assert_succeeds(result)
    assert re.search("finish|complete|already|done", result.output, re.IGNORECASE)
    assert (weights(run), (run / "metrics.jsonl").read_bytes()) == before


def test_sigterm_saves_says_how_to_go_on_and_exits_143(stopped):
    assert stopped.result.returncode == 143, stopped.result.output
    assert "Traceback" not in stopped.result.output
    assert re.search("resume|again|continue|go on", stopped.result.output, re.IGNORECASE)
    steps = [row["step"] for row in journal(stopped.snapshot)]
    assert 30 <= steps[-1] < 120
    newest = progress(checkpoints(stopped.snapshot)[-1])
    assert newest in (steps[-1], 8 * steps[-1]), "the step it finished is the one it saved"


def test_sigint_sigkill_and_other_workers_leave_no_trace_in_the_weights(stopped, finished):
    stopped.restore()
    run = stopped.run
    settings = [s for s in stopped.settings if not s.startswith("data.workers")]
    for number, workers, expected in ((signal.SIGINT, 1, 130), (signal.SIGKILL, 0, -9)):
        before = progress(checkpoints(run)[-1])
        command = [*alone(), str(RECIPES / "mean_color.yaml"), *settings, f"data.workers={workers}"]
        process = Process(command, run.parent)
        process.until(lambda before=before: progress(checkpoints(run)[-1]) > before)
        process.popen.send_signal(number)
        assert process.wait() == expected, process.output
        process.kill()  # a killed run's workers, if any
    last = stopped.again()
    assert_succeeds(last)
    assert weights(run) == weights(finished[0])
    assert losses(run) == losses(finished[0]), "the journal neither repeats nor lacks a step"
    steps = [row["step"] for row in journal(run)]
    assert steps == sorted(steps)


def test_resume_false_starts_afresh(stopped, finished):
    stopped.restore()
    assert_succeeds(stopped.again("checkpoint.resume=false"))
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


def test_another_experiment_in_the_same_folder_is_refused_and_every_difference_shown(stopped):
    stopped.restore()
    before = (weights(stopped.run), (stopped.run / "metrics.jsonl").read_bytes(), checkpoints(stopped.run))
    result = stopped.again("seed=70707", "objective.corruption.fraction=0.25", "training.duration.steps=121")
    assert_refused(result, "seed", "70707", "objective.corruption.fraction", "0.25", "training.duration", "121", "120")
    assert (weights(stopped.run), (stopped.run / "metrics.jsonl").read_bytes(), checkpoints(stopped.run)) == before


def test_damaged_checkpoints_are_named_and_the_one_before_them_used(stopped, finished):
    stopped.restore()
    _, incomplete, newest = checkpoints(stopped.run)[-3:]
    missing, flipped = largest_file(incomplete), largest_file(newest)
    missing.unlink()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    result = stopped.again()
    assert_succeeds(result)
    for word in (missing.name, incomplete.name, flipped.name, newest.name):
        assert word in result.output
    assert weights(stopped.run) == weights(finished[0])
    assert losses(stopped.run) == losses(finished[0])


def test_without_a_good_checkpoint_it_is_an_error_never_a_fresh_start(stopped):
    stopped.restore()
    victims = [largest_file(folder) for folder in checkpoints(stopped.run)]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    before = (stopped.run / "metrics.jsonl").read_bytes()
    assert_refused(stopped.again(), victims[-1].name)
    assert (stopped.run / "metrics.jsonl").read_bytes() == before
    assert all(victim.exists() for victim in victims), "nothing lost"


def test_a_folder_in_use_is_refused_and_the_first_run_goes_on(tmp_path, images):
    run = tmp_path / "run"
    settings = arguments(run, images, "training.duration.steps=100000", "checkpoint.every.steps=20")
    first = Process([*alone(), str(RECIPES / "mean_color.yaml"), *settings], tmp_path)
    try:
        first.until(lambda: len(checkpoints(run)) >= 1)
        first.popen.send_signal(signal.SIGSTOP)
        assert_refused(pretrain("mean_color.yaml", settings, tmp_path), str(run))
        first.popen.send_signal(signal.SIGCONT)
        known = checkpoints(run)
        first.until(lambda: checkpoints(run)[-1] not in known)
        first.popen.send_signal(signal.SIGTERM)
        assert first.wait() == 143, first.output
    finally:
        first.kill()


def test_sigterm_to_the_launcher_stops_the_run_cleanly(tmp_path, images, finished):
    run = tmp_path / "run"
    settings = [s for s in finished[1] if not s.startswith(("output_dir", "data.source"))]
    settings += [f"output_dir={run}", f"data.source={images}"]
    command = [*launched(), str(RECIPES / "mean_color.yaml"), *settings]
    process = Process(command, tmp_path)
    process.until(lambda: len(checkpoints(run)) >= 1)
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() in (143, -signal.SIGTERM), process.output
    assert process.group_is_gone(), "the training process outlived its launcher"
    assert journal(run)[-1]["step"] < 120
    assert_succeeds(pretrain("mean_color.yaml", settings, tmp_path))
    assert weights(run) == weights(finished[0])


# the same on another topology


def test_two_processes_and_accumulation_give_the_loss_of_one(tmp_path, images):
    runs = {"one": (alone(), 16, 0), "two": (launched_twice(), 4, 2)}
    rows = {}
    for name, (command, micro, workers) in runs.items():
        changes = ["training.batch_size=16", f"training.micro_batch_size={micro}", "training.duration.steps=6"]
        settings = arguments(tmp_path / name, images, *changes, f"data.workers={workers}")
        assert_succeeds(pretrain("mean_color.yaml", settings, tmp_path, command=command))
        rows[name] = journal(tmp_path / name)
    assert len(rows["one"]) == len(rows["two"]) == 6
    for one, two in zip(rows["one"], rows["two"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6), f"step {one['step']}"
        # Other crops, positions or kinds would show in these.
        for name in ("loss_mask", "loss_swap", "loss_keep"):
            assert two[name] == pytest.approx(one[name], rel=1e-5), f"step {one['step']}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine with a GPU that launch is right")
def test_two_processes_that_think_they_are_alone_are_refused(tmp_path, images):
    settings = arguments(tmp_path / "run", images, "training.duration.steps=2")
    result = pretrain("mean_color.yaml", settings, tmp_path, command=launched_twice(), ACCELERATE_USE_CPU="false")
    assert result.returncode != 0, result.output
    assert not checkpoints(tmp_path / "run")
    assert re.search("WORLD_SIZE|num_processes|processes", result.output)


# the command line


def test_help_lists_every_setting_within_three_seconds(tmp_path):
    best = float("inf")
    for _ in range(2):
        start = time.monotonic()
        command = [*alone(), "--help"]
        help_ = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=True)
        best = min(best, time.monotonic() - start)
    settings = (
        "command seed output_dir source split validation_split image_column label_column image_size workers cache "
        "name patch_size pool kind head fraction mask swap keep bits cells normalize lr weight_decay warmup "
        "batch_size micro_batch_size duration precision compile deterministic every resume"
    )
    for setting in settings.split():
        assert re.search(rf"\b{setting}\b", help_.stdout), setting
    assert best < 3


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mpp", "torch"),
        ("import mpp; mpp.load_recipe(PATH)", "timm datasets accelerate matplotlib"),
    ],
)
def test_heavy_libraries_come_late(tmp_path, statement, absent):
    statement = statement.replace("PATH", repr(str(RECIPES / "mean_color.yaml")))
    check = f"{statement}; import sys; print([m for m in {absent.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


def test_every_shipped_recipe_loads():
    found = sorted(RECIPES.rglob("*.yaml"))
    names = {"mean_color.yaml", "downsized.yaml", "full_patch.yaml", "supervised.yaml"}
    assert names <= {p.name for p in RECIPES.glob("*.yaml")}
    assert names <= {p.name for p in (RECIPES / "cifar10").glob("*.yaml")}
    assert list((RECIPES / "imagenet").glob("*.yaml"))
    for path in found:
        mpp.load_recipe(path)


def test_the_paper_s_numbers_are_in_the_paper_s_recipes():
    recipes = [mpp.load_recipe(path) for path in sorted((RECIPES / "imagenet").glob("*.yaml"))]
    masked = [r for r in recipes if r.objective.kind == "masked_patch"]
    assert {r.training.batch_size for r in masked} == {4096}
    assert {r.optimizer.lr for r in masked} == {2e-4}
    assert {r.data.image_size for r in masked} == {224}
    assert {0.5, 0.15} == {r.objective.corruption.fraction for r in masked}


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
    assert_succeeds(pretrain("mean_color.yaml", settings, tmp_path))
    assert_export_equals_run(tmp_path / "run", size)
