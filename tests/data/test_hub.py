from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.data_hub import Hub
from tests.support.forkserver import ForkServer

ROOT = Path(__file__).parents[2]


def test_a_hub_id_trains_as_the_same_files_on_disk_do(
    commands: ForkServer, tiny_recipe: Path, tiny_data: Path, tmp_path: Path
):
    with Hub("somebody/tiny", tiny_data) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        run = subprocess.run(
            [sys.executable, "-m", "mpp.pretrain", str(tiny_recipe), "data.source=somebody/tiny",
             f"output_dir={tmp_path / 'hub'}"],
            env=env, capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert any("train.parquet" in call for call in hub.asked)
        gone = subprocess.run(
            [sys.executable, "-m", "mpp.pretrain", str(tiny_recipe), "data.source=somebody/else",
             f"output_dir={tmp_path / 'gone'}"],
            env=env, capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
    assert gone.returncode == 2
    assert "'somebody/else' cannot be opened" in gone.stderr
    assert "Traceback" not in gone.stderr
    assert commands.run("mpp.pretrain", tiny_recipe).code == 0
    weights = [tmp_path / name / "encoder" / "model.safetensors" for name in ("hub", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
