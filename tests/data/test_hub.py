from __future__ import annotations

import time
from pathlib import Path

from tests.support.forkserver import ForkServer, good, refused
from tests.support.model_hub import ModelHub


def test_a_hub_id_trains_as_the_same_files_on_disk_do(
    commands: ForkServer, hub: ModelHub, tiny_recipe: Path, tiny_data: Path, tmp_path: Path
):
    hub.forget()
    hub.create("datasets/somebody/tiny", {path.name: path.read_bytes() for path in tiny_data.iterdir()})
    good(commands.run("mpp.pretrain", tiny_recipe, "data.source=somebody/tiny", f"output_dir={tmp_path / 'hub'}"))
    assert any("train.parquet" in call for call in hub.asked)
    gone = commands.run("mpp.pretrain", tiny_recipe, "data.source=somebody/else", f"output_dir={tmp_path / 'gone'}")
    refused(gone, "'somebody/else' cannot be opened")
    good(commands.run("mpp.pretrain", tiny_recipe))
    weights = [tmp_path / name / "encoder" / "model.safetensors" for name in ("hub", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_hub_that_cannot_be_reached_is_one_message_and_the_cache_is_enough(
    commands: ForkServer, hub: ModelHub, tiny_recipe: Path, tiny_data: Path, tmp_path: Path
):
    hub.create("datasets/somebody/known", {path.name: path.read_bytes() for path in tiny_data.iterdir()})
    good(commands.run("mpp.pretrain", tiny_recipe, "data.source=somebody/known", f"output_dir={tmp_path / 'first'}"))
    with hub.unplugged():
        begun = time.monotonic()
        for setting in ("data.source=somebody/new", "encoder.source=somebody/new"):
            new = commands.run("mpp.pretrain", tiny_recipe, setting, f"output_dir={tmp_path / 'new'}")
            refused(new, "the Hugging Face Hub cannot be reached to look for it: [Errno 111] Connection refused")
            assert "Retrying" not in new.text
        assert time.monotonic() - begun < 20, "five tries take 23 seconds"
        again = commands.run("mpp.pretrain", tiny_recipe, "data.source=somebody/known", f"output_dir={tmp_path / 'b'}")
    assert "Retrying" not in good(again).text
    weights = [tmp_path / name / "encoder" / "model.safetensors" for name in ("first", "b")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
