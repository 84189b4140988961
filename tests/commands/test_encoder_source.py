"""What is said about the encoder that a command loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpp.commands.encoder_source import warn_if_unfinished
from mpp.recipe import load_recipe
from mpp.recipe.errors import RecipeError
from tests.support.downstream import EVALUATE, FINETUNE, good, written
from tests.support.forkserver import ForkServer


def test_every_command_says_that_a_run_is_not_finished(
    commands: ForkServer, pretrained: Path, tinted_images: Path, tmp_path: Path
):
    """It has trained 4 of its 8 steps."""
    run = tmp_path / "mine"
    shutil.copytree(pretrained, run)
    shutil.rmtree(run / "checkpoints" / "step-000000008")
    warning = f"warning: {run} is at step 4 of 8: its training is not finished"
    encoder = f"encoder={run}"
    tuned = written(tmp_path / "finetune.yaml", FINETUNE, tinted_images, tmp_path / "tuned")
    evaluated = written(tmp_path / "evaluate.yaml", EVALUATE, tinted_images)
    said = {
        "finetune": commands.run("mpp.finetune", tuned, encoder, "training.duration.steps=2"),
        "evaluate": commands.run("mpp.evaluate", evaluated, encoder, "knn=null", "features.blocks=last"),
        "embed": commands.run("mpp.embed", "embed", f"encoder={run / 'encoder'}", f"data.source={tinted_images}",
                              "data.workers=0", f"output_dir={tmp_path / 'features'}"),
        "push": commands.run("mpp.push", run, "me/it", "--dry-run"),
    }  # fmt: skip
    for name, command in said.items():
        assert " ".join(good(command).text.split()).count(warning) == 1, name


def test_a_finished_run_and_a_lone_export_are_not_remarked_on(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(pretrained / "encoder", tmp_path / "exported")
    for source in (pretrained, pretrained / "encoder", tmp_path / "exported", "timm:vit_tiny_patch16_224"):
        warn_if_unfinished(source)
    assert capsys.readouterr().err == ""


def test_pre_training_has_one_size():
    with pytest.raises(RecipeError, match=r"encoder\.image_size(.|\n)*data\.image_size is the size"):
        load_recipe("mean_color", ["encoder.image_size=32"])
    with pytest.raises(RecipeError, match=r"encoder\.image_size(.|\n)*upstream\.image_size is the size"):
        load_recipe("gap", ["encoder.image_size=32"])
