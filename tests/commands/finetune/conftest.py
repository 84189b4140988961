"""The command, on small images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.downstream import FINETUNE, written
from tests.support.forkserver import Command, ForkServer
from tests.support.looking import Finetune


@pytest.fixture
def finetune(commands: ForkServer, tinted_images: Path, tmp_path: Path) -> Finetune:
    """Run the command into `tmp_path / "run"`; `start=True` does not wait for its end."""
    recipe = written(tmp_path / "recipe.yaml", FINETUNE, tinted_images, tmp_path / "run")

    def run(*changes: object, start: bool = False) -> Command:
        return (commands.start if start else commands.run)("mpp.finetune", recipe, *changes)

    return run
