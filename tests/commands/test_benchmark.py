"""The benchmark runs and prints all it promises; the speeds that it measures are not asserted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mpp.commands import benchmark
from mpp.recipe import PretrainRecipe, load_recipe


@pytest.mark.parametrize("objective", ["masked_patch", "supervised"])
def test_the_benchmark_prints_every_figure(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str
):
    monkeypatch.setattr(benchmark, "SECONDS", 0.1)
    monkeypatch.setattr(benchmark, "LOADED", 64)
    monkeypatch.setattr(benchmark, "RUN_SECONDS", 0.1)
    wsd = ["optimizer.schedule=wsd", "optimizer.decay.steps=10"]  # longer than the run that is timed
    recipe = load_recipe(tiny_recipe, [f"objective.kind={objective}", *wsd, "optimizer.warmup.steps=0"])
    assert benchmark.benchmark(recipe) == 0
    said = capsys.readouterr().out
    assert re.search(r"loader alone, 0 workers +[\d,]+ images/s", said)
    assert re.search(r"training step +[\d.]+ images/s", said)
    assert re.search(r"arithmetic +[\d.]+ TFLOP/s\n +\d+% of", said)
    assert re.search(r"page faults +[\d,]+ a step\n +time in the kernel +[\d.]+ % of CPU", said)
    assert re.search(r"time to first step +[\d.]+ s", said)
    assert re.search(r"waiting for images +[\d.]+ %", said)
    assert re.search(r"peak memory +\d\.\d\d GB", said)
    if objective == "masked_patch":
        assert re.search(r"bare timm step +[\d.]+ images/s", said)
        assert re.search(r"objective overhead +[+-][\d.]+ %", said)
    saved = Path(f"{recipe.output_dir}.benchmark.json")
    figures = json.loads(saved.read_text())["figures"]
    assert figures["time to first step"] > 1  # an interpreter and torch
    assert 0 <= figures["  waiting for images"] < 100
    assert not Path(recipe.output_dir).exists()


def test_figures_are_compared_with_those_of_the_same_recipe_and_machine(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
):
    figure = benchmark.Figure("training step", 50.0, "{:.1f} images/s")
    recipe = load_recipe(tiny_recipe)

    def shown(recipe: PretrainRecipe, machine: str, value: float) -> str:
        earlier = benchmark._Earlier(recipe, machine)
        earlier.show(figure._replace(value=value))
        earlier.save()
        return capsys.readouterr().out

    assert "×" not in shown(recipe, "this", 50.0)
    assert re.search(r"75\.0 images/s +50\.0 images/s +1\.50 ×", shown(recipe, "this", 75.0))
    assert "hardware" in (other := shown(recipe, "another", 75.0))
    assert "×" not in other
    changed = load_recipe(tiny_recipe, ["training.clip_grad=0.5"])
    assert "settings" in (other := shown(changed, "another", 75.0))
    assert "×" not in other


@pytest.mark.parametrize(("workers", "cache", "waited", "loader", "step", "words"), [
    (2, False, 0.01, 100, 400, ""),
    (0, False, 0.05, 900, 400, "data.workers=1"),
    (2, False, 0.05, 300, 400, "data.cache=true"),
    (2, True, 0.05, 300, 400, "raise data.workers, or"),
    (2, False, 0.05, 900, 400, "share the cores"),
])  # fmt: skip
def test_the_cause_of_waiting_is_named(
    tiny_recipe: Path, workers: int, cache: bool, waited: float, loader: float, step: float, words: str
):
    recipe = load_recipe(tiny_recipe, [f"data.workers={workers}", f"data.cache={cache}".lower()])
    cause = benchmark._cause(recipe, waited, loader, step)
    assert words in cause
    assert bool(cause) == bool(words)
