"""The command line and the recipes that are shipped."""

import re
import subprocess
import sys
import time

import pytest

import mpp
from tests.support.runs import RECIPES


def fresh(*arguments: str) -> str:
    """What a new interpreter says."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.cold
def test_help_lists_every_setting_within_three_seconds():
    seconds, said = float("inf"), ""
    for _ in range(2):
        start = time.monotonic()
        said = fresh("-m", "mpp.pretrain", "--help")
        seconds = min(seconds, time.monotonic() - start)
        if seconds < 3:
            break
    settings = (
        "command seed output_dir source split validation_split image_column label_column image_size workers cache "
        "name patch_size pool kind head fraction mask swap keep bits cells normalize lr weight_decay warmup "
        "batch_size micro_batch_size duration precision compile deterministic every resume"
    )
    for setting in settings.split():
        assert re.search(rf"\b{setting}\b", said), setting
    assert seconds < 3


@pytest.mark.cold
def test_a_recipe_is_loaded_without_heavy_libraries():
    heavy = ["timm", "datasets", "accelerate", "matplotlib"]
    load = f"import sys, mpp; mpp.load_recipe({str(RECIPES / 'mean_color.yaml')!r})"
    assert fresh("-c", f"{load}; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


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
