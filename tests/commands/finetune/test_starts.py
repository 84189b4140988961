"""Other starts, other networks, other protocols."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.downstream import SIZE, TEST, crops, final_weights, good, journal, refused, results, sha
from tests.support.looking import Finetune, by_timm


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


def test_without_an_image_size_it_is_the_network_s_own_and_the_run_the_same(
    finetune: Finetune, pretrained: Path, tmp_path: Path
):
    """Its weights and its recipe; and a run of an explicit size is resumed by the recipe without one."""
    short = ("training.duration.steps=2", "labels.dev=0")
    for start in ((), (f"encoder={pretrained}",)):
        own = "data.image_size=null", *(() if start else (f"encoder.image_size={SIZE}",))
        found = []
        for name, size in (("given", ()), ("own", own)):
            folder = tmp_path / name
            assert "warning: images of" not in good(finetune(*short, *start, *size, f"output_dir={folder}")).text
            recipe = (folder / "recipe.yaml").read_text().replace(str(folder), "")
            found.append((sha(final_weights(folder, 2)), recipe))
        assert found[0] == found[1]
        again = good(finetune(*short, *start, *own, f"output_dir={tmp_path / 'given'}")).text
        assert "is finished" in again
        for name in ("given", "own"):
            shutil.rmtree(tmp_path / name)


def test_a_run_keeps_the_size_that_it_started_with(finetune: Finetune, pretrained: Path):
    """As runs of recipes that named a size for every encoder do."""
    given = ("training.duration.steps=2", "labels.dev=0", f"encoder={pretrained}")
    said = good(finetune(*given, "data.image_size=24")).text
    assert "warning: images of 24 px go into an encoder that was trained at 16 px" in said
    assert "is finished" in good(finetune(*given, "data.image_size=null")).text
