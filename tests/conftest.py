from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

# Many processes are started here: where no bytecode is to be written, each of them would compile the sources of torch
# and timm anew, which takes longer than most tests.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:  # as many at a time as there are cores: or their threads would wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
else:  # what is prepared of the data sets stays out of the caches of whoever runs the tests
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="planted-alice-")  # which is not to be found in what is pushed
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # where there are GPUs too; test_cuda.py is for those
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts so what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the commands under test are to be as on a terminal

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.support import runs
from tests.support.downstream import PRETRAIN, tinted_data, written
from tests.support.forkserver import ForkServer, good
from tests.support.model_hub import ModelHub
from tests.support.runs import Stopped, arguments, checkpoints, pretrain, scene
from tests.support.small_recipe import GOOD

STEPS = "training.duration.steps=120"
ROOT = Path(__file__).parent.parent


HERE = Path(__file__).parent
TOGETHER = {"commands/test_same_command_again.py": "runs", "commands/test_run_folder.py": "runs", "hub/": "hub"}
"""Files and rooms whose tests share what takes long to make: one process runs them. All others go by file."""
LONGEST = ("commands/test_same_command_again.py", "commands/test_run_folder.py", "hub/", "study/test_run.py",
           "study/test_kept_units.py", "training/", "commands/test_resume.py", "commands/finetune/",
           "commands/test_bad_input.py")  # fmt: skip
"""Begun first, so that no core waits for them at the end; the order of the others is that of their names."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONGEST) if file(item).startswith(start)), len(LONGEST))

    def file(item: pytest.Item) -> str:
        return item.path.relative_to(HERE).as_posix()

    items.sort(key=rank)
    for item in items:
        group = next((group for start, group in TOGETHER.items() if file(item).startswith(start)), file(item))
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; a test that needs it is skipped, visibly, where there is none."""
    folder = Path(os.environ.get("MPP_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set MPP_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet data set of 96 + 32 blotchy 20×24 images with 3 classes."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for split, rows in (("train", 96), ("test", 32)):
        coarse = rng.integers(0, 256, (rows, 5, 6, 3), dtype=np.uint8)
        images = [Image.fromarray(np.kron(blotch, np.ones((4, 4, 1), np.uint8))) for blotch in coarse]
        table = datasets.Dataset.from_dict(
            {"image": images, "label": [row % 3 for row in range(rows)]}, features=features
        )
        table.to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.fixture(scope="session")
def tinted_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet data set whose three classes can be told apart by their tint, not quite surely."""
    return tinted_data(tmp_path_factory.mktemp("tinted"))


@pytest.fixture(scope="session")
def pretrained(commands: ForkServer, tinted_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of masked patch prediction, a few steps long."""
    folder = tmp_path_factory.mktemp("pretrained")
    recipe = written(folder / "pretrain.yaml", PRETRAIN, tinted_images, folder / "run")
    good(commands.run("mpp.pretrain", recipe))
    return folder / "run"


@pytest.fixture(scope="session")
def commands() -> ForkServer:
    """Runs commands as processes of their own."""
    return runs.server()


@pytest.fixture(scope="session")
def hub() -> ModelHub:
    """What the commands take for the Hub."""
    return runs.hub()


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_data: Path) -> Path:
    """A recipe whose steps take milliseconds; it runs in `tmp_path / "run"`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(f"""\
command: pretrain
output_dir: {tmp_path / "run"}
data: {{source: {tiny_data}, image_size: 16, crop_scale: [0.3, 1.0], workers: 0}}
encoder:
  name: vit_tiny_patch16_224
  patch_size: 4
  arguments: {{embed_dim: 32, depth: 2, num_heads: 2, drop_path_rate: 0.1}}
objective: {{kind: masked_patch, target: {{kind: mean_color}}}}
optimizer: {{lr: 1.0e-3, warmup: {{steps: 2}}}}
training: {{batch_size: 16, duration: {{steps: 12}}, precision: float32}}
validation: {{every: {{steps: 6}}, images: 16, baseline_images: 32}}
checkpoint: {{every: {{steps: 4}}}}
journal: {{every: {{steps: 1}}}}
reconstructions: {{every: {{steps: 0}}, images: 2}}
""")
    return path


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`r.yaml` in the current folder, with the settings of `tests.support.small_recipe`."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD)
    return Path("r.yaml")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """22 labelled training images in a folder a class, so that batches of 8 run across epoch borders."""
    folder = tmp_path_factory.mktemp("images")
    for split, count, offset in (("train", 22, 0), ("test", 8, 500)):
        for i in range(count):
            place = folder / split / ("red", "green", "blue")[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene(offset + i)).save(place / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, images):
    """(folder, settings, command) of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("finished") / "run"
    settings = arguments(run, images, STEPS)
    return run, settings, good(pretrain("mean_color.yaml", settings))


@pytest.fixture(scope="session")
def stopped(tmp_path_factory, images):
    """The same run, stopped by SIGTERM when three checkpoints were there."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    settings = arguments(run, images, STEPS)
    command = runs.start("mean_color.yaml", settings)
    command.until(lambda: len(checkpoints(run)) >= 3)
    command.kill(signal.SIGTERM)
    command.wait()
    snapshot = run.parent / "snapshot"
    shutil.copytree(run, snapshot)
    return Stopped(run, settings, command, snapshot)
