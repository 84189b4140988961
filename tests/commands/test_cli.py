"""The command line and the recipes that are shipped."""

import re
import subprocess
import sys
import time

import pytest

import mpp
from tests.support.runs import RECIPES, alone, environment


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
