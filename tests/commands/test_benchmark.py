"""The benchmark runs and says all it promises; what it measures is not asserted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mpp.commands import benchmark
from mpp.recipe import load_recipe


@pytest.mark.parametrize("objective", ["masked_patch", "supervised"])
def test_the_benchmark_prints_every_figure(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str
):
    monkeypatch.setattr(benchmark, "SECONDS", 0.1)
    monkeypatch.setattr(benchmark, "LOADED", 64)
    assert benchmark.benchmark(load_recipe(tiny_recipe, [f"objective.kind={objective}"])) == 0
    said = capsys.readouterr().out
    assert re.search(r"loader, 0 workers: +\d+ images/s", said)
    assert re.search(r"training step: +[\d.]+ images/s, [\d.]+ ms", said)
    assert re.search(r"[\d.]+ TFLOP/s, \d+% of", said)
    if objective == "masked_patch":
        assert re.search(r"bare timm step: +[\d.]+ images/s", said)
        assert re.search(r"objective overhead: +[+-][\d.]+%", said)
