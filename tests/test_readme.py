"""The README's Python, run as it is written there; its length; its links."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mpp
from tests.support.forkserver import ForkServer, good

ROOT = Path(mpp.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = """\
import mpp, numpy as np, torch
from PIL import Image
real = mpp.train
small = ["training.duration.steps=2", "optimizer.warmup.steps=1", "data.images=64", "validation.images=8",
         "validation.baseline_images=16", "reconstructions.images=2", "training.batch_size=8"]
mpp.train = lambda recipe, overrides: real(recipe, [*overrides, *small])
rng = np.random.default_rng(0)
pixels = torch.from_numpy(rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8))
train_features, test_features = torch.randn(100, 8), torch.randn(20, 8)
train_labels, test_labels = torch.arange(100) % 4, torch.arange(20) % 4
"""
"""What the block leaves to its reader, and a run that is short."""


def test_the_python_block_runs_as_written(tmp_path, commands: ForkServer):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.jpg")
    (tmp_path / "readme.py").write_text(f"{SMALL}{block}\nassert features.shape == (3, 128), features.shape\n")
    good(commands.run("tests.support.script", tmp_path / "readme.py", cwd=tmp_path))
    assert (tmp_path / "runs" / "mean_color" / "encoder" / "model.safetensors").is_file()
    assert Image.open(tmp_path / "reconstructions.png").size[0] > 400
    assert (tmp_path / "my_encoder" / "config.json").is_file()
    used = set(re.findall(r"\bmpp\.(\w+)", block))
    assert used <= set(mpp.__all__)
    assert {"train", "features", "reconstruct", "save_encoder", "load_encoder", "few_shot"} <= used


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 110
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link.partition("#")[0]).exists(), link


@pytest.mark.cold
def test_the_notebook_goes_from_a_folder_to_features_a_plot_and_a_staged_model(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "own_images.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs stay out of git"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no plot"
    said = "".join(output.get("text", "") for output in outputs)
    assert (tmp_path / "staged" / "model.safetensors").is_file(), said
    assert (tmp_path / "runs" / "own_images" / "report.html").is_file()
