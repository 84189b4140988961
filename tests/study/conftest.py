"""A small study of tinted images, as a command and in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mpp import gap
from tests.support.downstream import tinted_data, written
from tests.support.forkserver import ForkServer
from tests.support.small_study import GAP, Study


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinted_data(tmp_path_factory.mktemp("upstream"), train=60, test=20, seed=50)


@pytest.fixture
def study(commands: ForkServer, upstream: Path, tinted_images: Path, tmp_path: Path) -> Study:
    """Run a study in `tmp_path / "gap"`; `start=True` does not wait for its end."""
    recipe = written(tmp_path / "gap.yaml", GAP.replace("UPSTREAM", str(upstream)), tinted_images, tmp_path / "gap")
    return lambda *changes, start=False: (commands.start if start else commands.run)("mpp.gap", recipe, *changes)


@pytest.fixture
def here(
    upstream: Path,
    tinted_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """The message of a study that is refused, in this process."""
    recipe = written(tmp_path / "gap.yaml", GAP.replace("UPSTREAM", str(upstream)), tinted_images, tmp_path / "gap")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(*changes: str, code: int = 2) -> str:
        assert gap.main([str(recipe), *changes]) == code
        return " ".join(capsys.readouterr().err.split())

    return run
