"""Looks at the representation during pre-training: by images of train alone, and without a trace in the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import mpp
from mpp.data.label_subsets import dev_split, fraction_rows
from tests.support.downstream import (
    PRETRAIN,
    TRAIN,
    as_two,
    crops,
    final_weights,
    good,
    journal,
    refused,
    sha,
    tinted,
    written,
)
from tests.support.forkserver import Command, ForkServer
from tests.support.runs import encoded, free_port, write_parquet

Pretrain = Callable[..., Command]
LOOKS = (
    "evaluation={every: {steps: 4}, evaluators: [few_shot, knn], shots: [1, 5], k: [3, 7], images: 60, dev: 0.25}",
    "training.duration.steps=10",
)
NAMES = {
    f"evaluation/{name}_{pool}" for name in ("few_shot_1", "few_shot_5", "knn_3", "knn_7") for pool in ("token", "avg")
}


@pytest.fixture
def pretrain(commands: ForkServer, tinted_images: Path, tmp_path: Path) -> Pretrain:
    """Run the command into `tmp_path / "run"`."""
    recipe = written(tmp_path / "recipe.yaml", PRETRAIN, tinted_images, tmp_path / "run")
    return lambda *changes: commands.run("mpp.pretrain", recipe, *changes)


@pytest.fixture(scope="module")
def looked(commands: ForkServer, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("looked")
    recipe = written(home / "recipe.yaml", PRETRAIN, tinted_images, home / "run")
    good(commands.run("mpp.pretrain", recipe, *LOOKS))
    return home / "run"


def values(run: Path) -> dict[int, dict[str, float]]:
    """What was seen at each look."""
    lines = journal(run)
    found = {line["step"]: {k: v for k, v in line.items() if k.startswith("evaluation/")} for line in lines}
    return {step: seen for step, seen in found.items() if seen}


def test_every_so_often_and_at_the_end_the_journal_has_all_values(looked: Path):
    found = values(looked)
    assert list(found) == [4, 8, 10]
    for seen in found.values():
        assert set(seen) == NAMES
        assert all(0 <= value <= 1 for value in seen.values())


def test_the_last_values_are_those_of_the_exported_encoder(looked: Path, tinted_images: Path):
    encoder = mpp.load_encoder(looked).eval()
    encoder.use_fused_attention(False)
    pixels, labels = crops(tinted_images / "train.parquet")
    rows = fraction_rows(np.array(labels), 60 / TRAIN, 0)
    known, asked = dev_split(np.array(labels)[rows], 0.25, 0)
    assert (len(known), len(asked)) == (45, 15)
    with torch.no_grad():
        tokens = encoder(pixels[rows])
    for pool, features in (("token", tokens[:, 0]), ("avg", tokens[:, 1:].mean(1))):
        told = values(looked)[10]
        wanted = np.array(labels)[rows]
        given = (features[known], wanted[known], features[asked], wanted[asked])
        for shots, score in mpp.few_shot(*given, shots=(1, 5)).items():
            assert told[f"evaluation/few_shot_{shots}_{pool}"] == pytest.approx(score.mean, abs=1e-8)
        train, test = (features[part].double().numpy() for part in (known, asked))
        for k in (3, 7):
            vote = KNeighborsClassifier(
                k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
            )
            right = vote.fit(train, wanted[known]).predict(test) == wanted[asked]
            assert told[f"evaluation/knn_{k}_{pool}"] == pytest.approx(right.mean(), abs=1e-8)


@pytest.mark.parametrize("changes", [(), ("encoder={name: test_resnet}", "objective={kind: supervised}")])
def test_looking_changes_no_bit_of_the_weights(pretrain: Pretrain, tmp_path: Path, changes: tuple[str, ...]):
    """With stochastic depth, and with batch norm, which a look in training mode would disturb."""
    noisy = ("encoder.drop_path=0.3",) if not changes else ()
    good(pretrain(*changes, *noisy, LOOKS[1], f"output_dir={tmp_path / 'blind'}"))
    good(pretrain(*changes, *noisy, *LOOKS))
    assert sha(final_weights(tmp_path / "run", 10)) == sha(final_weights(tmp_path / "blind", 10))
    assert values(tmp_path / "run")
    losses = [[line.get("loss") for line in journal(tmp_path / name)] for name in ("run", "blind")]
    assert [loss for loss in losses[0] if loss] == [loss for loss in losses[1] if loss]


def test_a_stopped_run_says_the_same_at_every_look(pretrain: Pretrain, looked: Path, tmp_path: Path):
    shutil.copytree(looked, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000000010")
    shutil.rmtree(tmp_path / "run" / "encoder")
    assert "from step 8" in good(pretrain(*LOOKS)).text
    assert values(tmp_path / "run") == values(looked)


def test_trackers_and_two_processes_get_the_same_values(
    commands: ForkServer, pretrain: Pretrain, looked: Path, tinted_images: Path, tmp_path: Path
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = written(tmp_path / "two.yaml", PRETRAIN, tinted_images, tmp_path / "two")
    changes = (*LOOKS, "journal.trackers=[tensorboard]", "training.micro_batch_size=8")
    for command in as_two(commands, "mpp.pretrain", free_port(), recipe, *changes):
        good(command)
    found = values(tmp_path / "two")
    assert found.keys() == values(looked).keys()
    for step, seen in values(looked).items():
        assert found[step] == pytest.approx(seen, abs=1 / 15), "one image more or less, by rounding"
    events = min((tmp_path / "two").rglob("events.out.tfevents.*"), key=lambda path: len(path.parts))
    board = EventAccumulator(str(events.parent))  # settings lie further down
    board.Reload()
    for name in NAMES:
        told = {event.step: event.value for event in board.Scalars(name)}
        assert told == pytest.approx({step: seen[name] for step, seen in found.items()}, abs=1e-6)


def test_only_rows_of_train_are_read(pretrain: Pretrain, looked: Path, tinted_images: Path, tmp_path: Path):
    """Another held-out split, with other images and other labels, changes nothing that is said."""
    black = encoded(Image.fromarray(np.zeros((20, 24, 3), np.uint8)))
    (tmp_path / "data").mkdir()
    shutil.copy(tinted_images / "train.parquet", tmp_path / "data")
    write_parquet(tmp_path / "data" / "test.parquet", [(f"{i}.png", black) for i in range(8)], [2] * 8)
    good(pretrain(*LOOKS, f"data.source={tmp_path / 'data'}"))
    assert values(tmp_path / "run") == values(looked)
    last: dict[str, Any] = journal(tmp_path / "run")[-1]
    assert last["validation/loss"] != journal(looked)[-1]["validation/loss"]


def test_without_an_interval_there_is_one_look_at_the_end(pretrain: Pretrain, tmp_path: Path):
    good(pretrain("evaluation={evaluators: [knn], k: [3]}"))
    assert list(values(tmp_path / "run")) == [8]


def test_unlabelled_images_are_refused(pretrain: Pretrain, tmp_path: Path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "plain" / f"{split}.parquet", tinted(12, 3))
    refused(pretrain(*LOOKS, f"data.source={tmp_path / 'plain'}"), "labels are needed", "label_column")
    good(pretrain(f"data.source={tmp_path / 'plain'}", "training.duration.steps=1"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("evaluation={evaluators: [few_shot], shots: [25]}", ("25", "24")),
        ("evaluation={evaluators: [knn], k: [73]}", ("73", "72")),
    ],
)
def test_more_than_there_is_is_refused_before_training(
    pretrain: Pretrain, tmp_path: Path, change: str, words: tuple[str, ...]
):
    refused(pretrain(change), *words)
    assert not (tmp_path / "run" / "checkpoints").exists()
