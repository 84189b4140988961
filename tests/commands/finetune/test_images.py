"""Which images a fine-tuning trains on, which it only looks at, and when it is content."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mpp.data.label_subsets import dev_split, fraction_rows
from tests.support.downstream import TEST, TRAIN, crops, final_weights, good, journal, results, sha, tinted, untimed
from tests.support.looking import Finetune, best_weights, by_timm, looked, steps_said
from tests.support.runs import write_parquet


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
