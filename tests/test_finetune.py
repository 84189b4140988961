"""`mpp.finetune`, whole: what is trained on which images, what is chosen by what, and that no stop leaves a trace."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm import optim

import mpp
from mpp.data.subsets import dev_split, fraction_rows
from mpp.encoder.build import create_backbone
from mpp.objective.supervised import LinearProbe, SupervisedClassification
from mpp.training.augmentation import Augmentation, augmentation
from mpp.training.optimizer import make_optimizer
from mpp.training.settings import AugmentationSettings, OptimizerSettings
from tests.downstream import (
    FINETUNE,
    TEST,
    TRAIN,
    crops,
    final_weights,
    good,
    journal,
    refused,
    results,
    sha,
    tinted,
    untimed,
    written,
)
from tests.forkserver import Command, ForkServer
from tests.reference import random_pixels
from tests.runs import write_parquet

Finetune = Callable[..., Command]
EVERYTHING = (
    "augmentation.mixup=0.8", "augmentation.cutmix=1.0", "augmentation.erase=0.5", "encoder.drop_path=0.2",
    "optimizer.layer_decay=0.75", "objective.label_smoothing=0.1", "encoder.attention=fused",
    "early_stopping.patience=100",
)  # fmt: skip
STEPS = 40
LONG = f"training.duration.steps={STEPS}"


@pytest.fixture
def finetune(commands: ForkServer, tinted_images: Path, tmp_path: Path) -> Finetune:
    """Run the command into `tmp_path / "run"`; `start=True` does not wait for its end."""
    recipe = written(tmp_path / "recipe.yaml", FINETUNE, tinted_images, tmp_path / "run")

    def run(*changes: object, start: bool = False) -> Command:
        return (commands.start if start else commands.run)("mpp.finetune", recipe, *changes)

    return run


@pytest.fixture(scope="module")
def straight(commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory):
    """(command, folder) of a run with every augmentation that nothing interrupted."""
    home = tmp_path_factory.mktemp("straight")
    recipe = written(home / "recipe.yaml", FINETUNE, tinted_images, home / "run")
    return good(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", LONG, *EVERYTHING)), home / "run"


def looked(run: Path) -> dict[int, tuple[float, float]]:
    """By step what the dev split said: accuracy, and the loss below zero, so that more is better."""
    lines = [line for line in journal(run) if "validation/accuracy" in line]
    return {line["step"]: (line["validation/accuracy"], -line["validation/loss"]) for line in lines}


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    [path] = run.glob("best-*.safetensors")
    return load_file(path)


def steps_said(command: Command) -> list[int]:
    return [int(step) for step in re.findall(r"^step +(\d+)/", command.text, re.MULTILINE)]


def until(command: Command, condition: Callable[[], Any]) -> None:
    while not condition():
        assert command.alive, command.text
        time.sleep(0.002)


def by_timm(run: Path, pixels: torch.Tensor) -> torch.Tensor:
    """What timm's own model with the exported classifier says, and nothing of ours."""
    model: Any = timm.create_model(f"local-dir:{run / 'classifier'}", pretrained=True).eval()
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        return model((pixels.float() / 255 - mean) / std)


# The head, the layers, the batches


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_zero_head_begins_with_uniform_predictions(head: str):
    torch.manual_seed(0)
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    objective = SupervisedClassification(encoder, 7, head, head_init="zero")
    found = objective(random_pixels(3, 16), labels=torch.tensor([0, 3, 6]))
    assert torch.equal(found.logits, found.logits[:, :1].expand(3, 7))
    assert found.loss.item() == pytest.approx(np.log(7), abs=1e-6)
    assert mpp.load_recipe("recipes/finetune.yaml", command="finetune").objective.head_init == "zero"


LAYERED = [
    ("vit_tiny_patch16_224", 32, {"embed_dim": 32, "depth": 3, "num_heads": 2}),
    ("vit_small_patch14_reg4_dinov2", 28, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ("deit_tiny_distilled_patch16_224", 32, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ("eva02_tiny_patch14_224", 28, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ("resnet18", 32, {}),
]
EXEMPT_HERE = {"reg_token"}
"""Tokens that do not decay here, as the protocol has it, and that timm forgets."""


@pytest.mark.parametrize("decay", [0.65, 0.75])
@pytest.mark.parametrize(("name", "size", "arguments"), LAYERED, ids=[case[0] for case in LAYERED])
def test_layer_wise_rates_and_decay_are_timm_s(name: str, size: int, arguments: dict[str, Any], decay: float):
    backbone = create_backbone(name, image_size=size, **arguments)
    objective = SupervisedClassification(backbone, 3)
    settings = OptimizerSettings(lr=2.0, weight_decay=0.05, layer_decay=decay)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    ours: dict[str, tuple[float, float]] = {}
    for group in make_optimizer(objective, settings).param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in ours
            ours[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])

    model: Any = timm.create_model(name, num_classes=3, **backbone.arguments)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = optim.param_groups_layer_decay(  # pyright: ignore[reportPrivateImportUsage]
        model, 0.05, no_weight_decay_list=spared, layer_decay=decay
    )
    theirs = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    heads = (model.pretrained_cfg["classifier"],) if isinstance(model.pretrained_cfg["classifier"], str) else ("head",)
    seen = set()
    for of_timm, parameter in model.named_parameters():
        if of_timm.startswith("head_dist."):
            continue  # the second head of a distilled model, which stands for the same weights
        head = next((head for head in heads if of_timm.startswith(f"{head}.")), None)
        name_here = f"head.{of_timm.removeprefix(f'{head}.')}" if head else f"encoder.{backbone.KEY}.{of_timm}"
        scale, weight_decay = theirs[id(parameter)]
        expected = (scale, 0.0 if of_timm in EXEMPT_HERE else weight_decay)
        assert ours[name_here] == pytest.approx(expected, rel=1e-12), of_timm
        seen.add(name_here)
    assert seen == set(ours)
    scales = {scale for scale, _ in ours.values()}
    assert max(scales) == 1.0
    layers = max(round(np.log(scale) / np.log(decay)) for scale in scales)
    assert layers == arguments.get("depth", 0) + 1 or name == "resnet18"


@pytest.fixture
def mixing() -> Any:
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2
    )

    def batch(seed: int = 0, **settings: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels and labels before and after."""
        augment = Augmentation(AugmentationSettings(**settings), encoder, 5, torch.device("cpu"))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        pixels, labels = random_pixels(6, 16), torch.tensor([0, 1, 2, 3, 4, 0])
        return pixels.clone(), labels, *augment(pixels.clone(), labels.clone())

    return batch


def test_mixup_is_the_sum_of_a_batch_and_its_reverse(mixing: Any):
    pixels, labels, mixed, targets = mixing(mixup=0.8)
    assert mixed.dtype == torch.uint8
    assert mixed.shape == pixels.shape
    onehot = torch.nn.functional.one_hot(labels, 5).float()
    share = float(targets[0, 0])  # of image 0 with class 0 and image 5, of class 0 too
    assert share == pytest.approx(1.0)
    share = float(targets[1, 1])
    assert 0.01 < share < 0.99
    assert torch.allclose(targets, share * onehot + (1 - share) * onehot.flip(0), atol=1e-6)
    expected = share * pixels.double() + (1 - share) * pixels.flip(0).double()
    assert (mixed.double() - expected).abs().max() <= 0.501


def test_cutmix_takes_a_rectangle_from_the_reverse_and_its_share_of_the_label(mixing: Any):
    pixels, _, mixed, targets = mixing(seed=3, cutmix=1.0)
    assert mixed.dtype == torch.uint8
    own, other = (mixed == pixels).all(1), (mixed == pixels.flip(0)).all(1)
    assert (own | other).all(), "every pixel comes from one of two images, to the last bit"
    cut = ~own[0]
    rows, columns = cut.any(1).sum(), cut.any(0).sum()
    assert cut.sum() == rows * columns
    assert 0 < cut.sum() < 256
    assert float(targets[1, 1]) == pytest.approx(1 - float(cut.sum()) / 256, abs=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(6))


def test_erasing_fills_a_rectangle_and_leaves_the_rest_and_the_labels(mixing: Any):
    pixels, labels, erased, kept = mixing(erase=1.0)
    assert erased.dtype == torch.uint8
    assert torch.equal(kept, labels)
    changed = (erased != pixels).any(1).flatten(1).float().mean(1)
    assert ((changed > 0.01) & (changed < 0.4)).all()


def test_all_at_once_keeps_form_and_total(mixing: Any):
    for seed in range(5):
        pixels, _, mixed, targets = mixing(seed=seed, mixup=0.8, cutmix=1.0, erase=0.5)
        assert mixed.dtype == torch.uint8
        assert mixed.shape == pixels.shape
        assert targets.shape == (6, 5)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        assert (targets >= 0).all()


def test_nothing_asked_for_is_nothing():
    encoder = mpp.create_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2
    )
    assert augmentation(AugmentationSettings(), encoder, 3, torch.device("cpu")) is None


# One run


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
    for number, least in ((signal.SIGKILL, 6), (signal.SIGKILL, 11), (signal.SIGTERM, 17)):
        command = finetune(*given, start=True)
        until(command, lambda command=command, least=least: max(steps_said(command), default=0) >= least)
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimizer.lr=1e-4", ("optimizer.lr", "0.003", "0.0001")),
        ("labels.fraction=0.5", ("labels.fraction", "0.5")),
        ("augmentation.mixup=0.2", ("augmentation.mixup", "0.8", "0.2")),
        ("seed=8", ("seed", "8")),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    commands: ForkServer, straight: tuple[Command, Path], pretrained: Path, change: str, words: tuple[str, ...]
):
    recipe = straight[1].parent / "recipe.yaml"
    before = sha(straight[1] / "results.json")
    refused(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", LONG, *EVERYTHING, change), *words)
    assert sha(straight[1] / "results.json") == before


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


# Which images


def test_exactly_the_stratified_rows_are_trained_on_and_the_dev_rows_only_looked_at(
    finetune: Finetune, tinted_images: Path, tmp_path: Path
):
    """Every image outside the fraction is broken, and so is every second one of its dev split: what is read, tells."""
    labels = np.arange(TRAIN) % 3
    rows = fraction_rows(labels, 0.5, 4)
    fitted, dev = (rows[part] for part in dev_split(labels[rows], 0.4, 4))
    assert np.bincount(labels[fitted]).tolist() == [9, 9, 9]
    images = tinted(TRAIN, 0)
    sound = set(fitted) | set(dev[::2])
    broken = [(name, content if row in sound else content[:90]) for row, (name, content) in enumerate(images)]
    write_parquet(tmp_path / "data" / "train.parquet", broken, labels.tolist())
    shutil.copy(tinted_images / "test.parquet", tmp_path / "data")
    settings = ["labels={fraction: 0.5, dev: 0.4, seed: 4}", "training.duration.epochs=2", "data.max_bad_share=0"]
    good(finetune(f"data.source={tmp_path / 'data'}", *settings))
    lines = journal(tmp_path / "run")
    assert not any("damaged" in line for line in lines)
    named = [re.match(r"row (\d+)", image["where"]) for image in lines[-1]["validation/damaged_images"]]
    assert sorted(int(match[1]) for match in named if match) == sorted(dev[1::2].tolist())
    assert results(tmp_path / "run")["train_images"] == len(fitted) == 27


def test_without_a_dev_split_all_labels_are_trained_on_and_the_last_weights_are_tested(
    finetune: Finetune, tmp_path: Path
):
    good(finetune("labels.dev=0"))
    found = results(tmp_path / "run")
    assert found["train_images"] == TRAIN
    assert found["best_on_dev"] is None
    last = load_file(final_weights(tmp_path / "run", 12))
    exported = load_file(tmp_path / "run" / "classifier" / "model.safetensors")
    assert torch.equal(exported["head.weight"], last["head.weight"])
    assert not any(name.startswith("validation/") for line in journal(tmp_path / "run") for name in line)


def test_augmentation_that_is_off_changes_no_bit_and_that_is_on_does(finetune: Finetune, tmp_path: Path):
    short = ("training.duration.steps=3", "validation.every.steps=0")
    settings = {
        "plain": (),
        "off": ("augmentation={mixup: 0, cutmix: 0, erase: 0}",),
        "mixup": ("augmentation.mixup=0.8",),
        "erase": ("augmentation.erase=1.0",),
    }
    for name, changes in settings.items():
        good(finetune(*short, *changes, f"output_dir={tmp_path / name}"))
    found = {name: sha(final_weights(tmp_path / name, 3)) for name in settings}
    assert found["plain"] == found["off"]
    assert len(set(found.values())) == 3


def test_early_stopping_ends_after_patience_looks_without_a_new_best(
    finetune: Finetune, tinted_images: Path, tmp_path: Path
):
    settings = ["training.duration.steps=400", "validation.every.steps=2", "early_stopping.patience=3"]
    settings += ["optimizer.lr=1e-2", "checkpoint.every.steps=0"]
    said = good(finetune(*settings))
    run = tmp_path / "run"
    looks, best, since = looked(run), (-1.0, 0.0), 0
    steps = list(looks)
    for step in steps:
        best, since = (looks[step], 0) if looks[step] > best else (best, since + 1)
        assert since < 3 or step == steps[-1], "it ends there"
    assert since == 3
    found = results(run)
    assert found["ended_early"]
    assert "ended early" in said.text
    assert found["steps"] == steps[-1] < 400
    assert found["best_on_dev"] == {"accuracy": pytest.approx(best[0], abs=1e-8), "step": steps[-4]}
    assert found["images_seen"] == steps[-1] * 16
    best_ones, last = best_weights(run), load_file(final_weights(run, steps[-1]))
    exported = load_file(run / "classifier" / "model.safetensors")
    assert torch.equal(exported["head.weight"], best_ones["head.weight"])
    assert not torch.equal(exported["head.weight"], last["head.weight"])
    pixels, labels = crops(tinted_images / "test.parquet")
    hits = int((by_timm(run, pixels).argmax(1) == torch.tensor(labels)).sum())
    assert round(found["test"]["accuracy"] * TEST) == hits
    assert "is finished" in good(finetune(*settings)).text

    (run / "results.json").unlink()  # as if killed before the test
    again = good(finetune(*settings))
    assert not steps_said(again)
    assert untimed(results(run)) == untimed(found)


# The search

SEARCH = ("search={lr: [1e-5, 3e-3], pool: [token, avg]}", "training.duration.steps=16")
CANDIDATES = [f"lr={lr},pool={pool}" for pool in ("token", "avg") for lr in ("1e-05", "0.003")]


@pytest.fixture(scope="module")
def searched(commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory):
    """(command, folder) of a search that nothing interrupted."""
    home = tmp_path_factory.mktemp("searched")
    recipe = written(home / "recipe.yaml", FINETUNE, tinted_images, home / "run")
    return good(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", *SEARCH)), home / "run"


def test_every_combination_is_tried_on_train_minus_dev_and_the_best_retrained_on_all(
    searched: tuple[Command, Path], finetune: Finetune, pretrained: Path, tmp_path: Path
):
    _, run = searched
    found = results(run)
    assert sorted(path.name for path in (run / "search").iterdir()) == sorted(CANDIDATES)
    assert [f"lr={each['lr']:g},pool={each['pool']}" for each in found["search"]] == CANDIDATES
    for name, each in zip(CANDIDATES, found["search"], strict=True):
        candidate = run / "search" / name
        accuracy, minus_loss = looked(candidate)[16]
        assert (each["dev_accuracy"], each["dev_loss"]) == (accuracy, -minus_loss), "at the end of its run"
        state = json.loads((candidate / "checkpoints" / "step-000000016" / "state.json").read_text())
        assert state["data"]["rows"] == TRAIN * 8 // 10
        assert not (candidate / "results.json").exists(), "nobody looked at the test split"
    best = max(found["search"], key=lambda each: (each["dev_accuracy"], -each["dev_loss"]))
    assert found["chosen"] == {"lr": best["lr"], "pool": best["pool"]}
    assert found["chosen"]["lr"] == 3e-3, "a rate at which nothing is learnt loses"
    assert found["train_images"] == TRAIN
    assert found["best_on_dev"] is None
    pool, lr = found["chosen"]["pool"], found["chosen"]["lr"]
    alone = [f"encoder={{source: {pretrained}, pool: {pool}}}", f"optimizer.lr={lr}", "labels.dev=0", SEARCH[1]]
    good(finetune(*alone))
    assert sha(final_weights(run, 16)) == sha(final_weights(tmp_path / "run", 16))
    assert untimed(results(tmp_path / "run"))["test"] == found["test"]


def test_the_test_split_has_no_say_in_the_choice(
    searched: tuple[Command, Path], finetune: Finetune, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    (tmp_path / "data").mkdir()
    shutil.copy(tinted_images / "train.parquet", tmp_path / "data")
    write_parquet(tmp_path / "data" / "test.parquet", tinted(20, 8), [(row + 1) % 3 for row in range(20)])
    good(finetune(f"encoder={pretrained}", *SEARCH, f"data.source={tmp_path / 'data'}"))
    now, then = results(tmp_path / "run"), results(searched[1])
    assert (now["chosen"], now["search"]) == (then["chosen"], then["search"])
    assert now["test"] != then["test"]
    assert sha(final_weights(tmp_path / "run", 16)) == sha(final_weights(searched[1], 16))


def test_a_search_killed_in_its_middle_goes_on_without_repeating_what_is_done(
    searched: tuple[Command, Path], finetune: Finetune, pretrained: Path, tmp_path: Path
):
    run, given = tmp_path / "run", (f"encoder={pretrained}", *SEARCH)
    third = run / "search" / CANDIDATES[2]
    command = finetune(*given, start=True)
    until(command, lambda: (third / "checkpoints" / "step-000000004").is_dir())
    command.kill()
    command.wait()
    done = {path: path.stat().st_mtime_ns for name in CANDIDATES[:2] for path in files(run / "search" / name)}
    assert done
    assert not (run / "results.json").exists()

    command = finetune(*given, start=True)
    until(command, lambda: (run / "checkpoints" / "step-000000004").is_dir())
    command.kill()
    command.wait()
    tried = {path: path.stat().st_mtime_ns for path in files(run / "search")}
    assert {path: path.stat().st_mtime_ns for path in done} == done
    text = command.text
    assert [name for name in CANDIDATES if f"\n{name}\n" in text] == CANDIDATES[2:]

    said = good(finetune(*given))
    assert {path: path.stat().st_mtime_ns for path in tried} == tried
    assert steps_said(said)[0] > 4
    assert untimed(results(run)) == untimed(results(searched[1]))
    assert sha(final_weights(run, 16)) == sha(final_weights(searched[1], 16))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_finished_search_says_so(commands: ForkServer, searched: tuple[Command, Path], pretrained: Path):
    said = good(commands.run("mpp.finetune", searched[1].parent / "recipe.yaml", f"encoder={pretrained}", *SEARCH))
    assert "is finished" in said.text


def test_another_grid_in_the_folder_of_a_finished_search_is_refused(
    commands: ForkServer, searched: tuple[Command, Path], pretrained: Path
):
    recipe = searched[1].parent / "recipe.yaml"
    wider = "search={lr: [1e-5, 3e-3, 1e-2], pool: [token, avg]}"
    refused(commands.run("mpp.finetune", recipe, f"encoder={pretrained}", wider, SEARCH[1]), "search")


def test_a_search_that_is_to_stop_early_is_refused(finetune: Finetune):
    refused(finetune(*SEARCH, "early_stopping.patience=2"), "early_stopping", "search")


def test_rates_that_diverge_are_left_behind(finetune: Finetune, tmp_path: Path):
    wild = ["search.lr=[1e30,3e-3]", "training.max_skipped=2", "training.duration.steps=8"]
    good(finetune(*wild))
    found = results(tmp_path / "run")
    assert found["chosen"]["lr"] == 3e-3
    assert [each["dev_accuracy"] is None for each in found["search"]] == [True, False]
    (tmp_path / "run" / "results.json").unlink()
    left = tmp_path / "run" / "search" / "lr=1e+30"
    before = {path: path.stat().st_mtime_ns for path in left.rglob("*") if path.is_file()}
    good(finetune(*wild))
    assert {path: path.stat().st_mtime_ns for path in left.rglob("*") if path.is_file()} == before, "it diverged before"
    assert results(tmp_path / "run")["search"] == found["search"]
    found = finetune("search.lr=[1e30]", *wild[1:], f"output_dir={tmp_path / 'all'}")
    refused(found, "none of the 1 runs", code=1)


@pytest.mark.parametrize("setting", ["search.lr=[1e-3,1e-2]", "early_stopping.patience=2"])
def test_a_choice_without_a_dev_split_is_refused(finetune: Finetune, setting: str, tmp_path: Path):
    refused(finetune("labels.dev=0", setting), "labels.dev")
    assert not (tmp_path / "run" / "checkpoints").exists()


# Other starts, other networks, other protocols


def test_a_larger_image_than_in_pre_training_resizes_the_positions(
    finetune: Finetune, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    good(finetune(f"encoder={pretrained}", "data.image_size=24", "optimizer.lr=1e-30", "labels.dev=0"))
    before = load_file(pretrained / "encoder" / "model.safetensors")["pos_embed"]
    after = load_file(tmp_path / "run" / "encoder" / "model.safetensors")["pos_embed"]
    grid = before[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bilinear", align_corners=True)
    assert after.shape == (1, 37, 32)
    torch.testing.assert_close(after[:, 1:], larger.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=1e-6)
    assert torch.equal(after[:, :1], before[:, :1])
    pixels, labels = crops(tinted_images / "test.parquet", 24)
    hits = int((by_timm(tmp_path / "run", pixels).argmax(1) == torch.tensor(labels)).sum())
    assert round(results(tmp_path / "run")["test"]["accuracy"] * TEST) == hits


def test_from_scratch_is_the_same_command_without_a_source(finetune: Finetune, pretrained: Path, tmp_path: Path):
    good(finetune("training.duration.steps=2"))
    found = results(tmp_path / "run")
    assert found["encoder"] == "vit_tiny_patch16_224 from scratch"
    good(finetune("training.duration.steps=2", f"encoder={pretrained}", f"output_dir={tmp_path / 'tuned'}"))
    assert results(tmp_path / "tuned")["encoder"] == str(pretrained)
    assert journal(tmp_path / "run")[0]["loss"] == pytest.approx(np.log(3), abs=1e-5), "the head begins at zero"
    assert journal(tmp_path / "tuned")[0]["loss"] == pytest.approx(np.log(3), abs=1e-5)
    assert sha(final_weights(tmp_path / "run", 2)) != sha(final_weights(tmp_path / "tuned", 2))


def test_a_resnet_learns_from_scratch(finetune: Finetune, tinted_images: Path, tmp_path: Path):
    settings = ["encoder={name: resnet18}", "data.image_size=32", "training.duration.steps=4", "labels.dev=0.1"]
    good(finetune(*settings, "validation.every.steps=2", "optimizer.layer_decay=0.75", "augmentation.mixup=0.2"))
    pixels, labels = crops(tinted_images / "test.parquet", 32)
    logits = by_timm(tmp_path / "run", pixels)
    found = results(tmp_path / "run")
    assert round(found["test"]["accuracy"] * TEST) == int((logits.argmax(1) == torch.tensor(labels)).sum())
    assert found["chosen"]["pool"] is None


def test_the_paper_s_protocol_runs(finetune: Finetune, pretrained: Path, tmp_path: Path):
    sgd = "optimizer={name: momentum, arguments: {momentum: 0.9}, lr: 0.01, weight_decay: 0, warmup: {steps: 2}}"
    good(finetune(f"encoder={pretrained}", sgd, "training.clip_grad=1.0", "data.image_size=24", "labels.dev=0"))
    lines = [line for line in journal(tmp_path / "run") if "lr" in line]
    expected = [0.005, 0.01, *(0.01 * (1 + np.cos(np.pi * step / 10)) / 2 for step in range(10))]
    assert [line["lr"] for line in lines] == pytest.approx(expected, abs=1e-9)
    state = json.loads((tmp_path / "run/checkpoints/step-000000012/state.json").read_text())
    groups = dict(state["optimizer"]["dict"])["param_groups"]["list"]
    for group in groups:
        values = dict(group["dict"])
        assert (values["momentum"], values["weight_decay"], values["nesterov"]) == (0.9, 0.0, False)


def test_an_odd_micro_batch_is_refused_where_images_are_paired(finetune: Finetune, tmp_path: Path):
    odd = ["training.batch_size=10", "training.micro_batch_size=5"]
    refused(finetune(*odd, "augmentation.mixup=0.5"), "5 is odd", "micro_batch_size")
    assert not (tmp_path / "run" / "checkpoints").exists()
    good(finetune(*odd, "augmentation.erase=0.5", "training.duration.steps=1"))


# The trained linear probe

LARS = (
    "objective={kind: linear_probe}", "optimizer={name: lars, arguments: {momentum: 0.9, trust_coeff: 0.001, "
    "always_adapt: true}, lr: 0.1, lr_scaling: linear, weight_decay: 0, warmup: {steps: 2}}", "training.clip_grad=null",
)  # fmt: skip


def test_the_linear_probe_leaves_the_encoder_as_it_is_and_timm_reads_its_classifier(
    finetune: Finetune, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    good(finetune(f"encoder={pretrained}", *LARS, "encoder.drop_path=0.3", "encoder.attention=fused"))
    run = tmp_path / "run"
    before = load_file(pretrained / "encoder" / "model.safetensors")
    trained = load_file(final_weights(run, 12))
    for name, value in before.items():
        assert torch.equal(trained[f"encoder.vit.{name}"], value), name
        assert torch.equal(load_file(run / "encoder" / "model.safetensors")[name], value), name
    pixels, labels = crops(tinted_images / "test.parquet")
    objective = LinearProbe(mpp.load_encoder(pretrained), 3).eval()
    objective.load_state_dict(trained)
    with torch.no_grad():
        expected = objective(pixels, labels=torch.tensor(labels)).logits
    logits = by_timm(run, pixels)
    assert (logits - expected).abs().max() < 1e-5
    assert expected.std() > 1e-3
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert round(results(run)["test"]["accuracy"] * TEST) == int((expected.argmax(1) == torch.tensor(labels)).sum())


def test_the_linear_probe_s_head_is_mae_s():
    encoder = mpp.create_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4)
    torch.manual_seed(0)
    objective = LinearProbe(encoder, 400)
    assert isinstance(objective.head, torch.nn.Sequential)
    norm, linear = objective.head
    assert isinstance(norm, torch.nn.BatchNorm1d)
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not linear.bias.any()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    objective.train()
    assert norm.training
    assert not any(module.training for module in encoder.modules())


def test_the_linear_probe_on_a_cnn_leaves_its_running_statistics_alone(finetune: Finetune, tmp_path: Path):
    good(finetune(*LARS, "encoder={name: test_resnet}", "data.image_size=20", "training.duration.steps=3"))
    tensors = load_file(tmp_path / "run" / "encoder" / "model.safetensors")
    counted = [value for name, value in tensors.items() if name.endswith("num_batches_tracked")]
    assert counted
    assert not any(counted)


def test_a_single_class_is_refused(finetune: Finetune, tmp_path: Path):
    import datasets

    (tmp_path / "one").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["only"])})
    for split in ("train", "test"):
        images = [{"bytes": content, "path": name} for name, content in tinted(20, 2)]
        table = datasets.Dataset.from_dict({"image": images, "label": [0] * 20}, features=features)
        table.to_parquet(str(tmp_path / "one" / f"{split}.parquet"))
    refused(finetune(f"data.source={tmp_path / 'one'}"), "single class")
