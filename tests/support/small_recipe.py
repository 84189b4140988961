"""A small tree of settings with all that a recipe's schema may hold, and its recipe `r.yaml` in the current folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from mpp.recipe import RecipeError
from mpp.recipe.overrides import apply_overrides
from mpp.recipe.parse import read_document
from mpp.recipe.validate import check
from mpp.settings import Duration, Settings


class Tiles(Settings):
    """Coloured tiles."""

    kind: Literal["tiles"] = "tiles"
    bits: int = Field(default=3, ge=1, le=8)
    """Bits a channel."""
    cells: int = 4


class Pixels(Settings):
    """Plain pixels."""

    kind: Literal["pixels"] = "pixels"
    bits: int = Field(default=3, ge=1, le=8)
    normalize: bool = False


class Guess(Settings):
    """Guess what was there."""

    kind: Literal["guess"]
    head: Literal["linear", "mlp"] = "linear"
    target: Annotated[Tiles | Pixels, Field(discriminator="kind")] = Tiles()


class Classify(Settings):
    """Name what is there."""

    kind: Literal["classify"]
    head: Literal["linear", "mlp"] = "linear"
    smoothing: float = Field(default=0.0, ge=0, lt=1)


class Source(Settings):
    """Where it comes from."""

    path: str
    """A folder."""
    column: str | None = None
    size: int | None = Field(default=None, ge=1)
    scale: tuple[float, float] = (0.08, 1.0)
    names: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)
    cache: bool = False
    threads: int | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> Source:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must rise; found {self.scale[0]:g} before {self.scale[1]:g}")
        return self


class Loop(Settings):
    """How long."""

    lr: float = Field(default=1e-3, gt=0)
    duration: Duration = Duration(epochs=1)
    every: Duration | None = None


class Tree(Settings):
    """A small recipe."""

    seed: int = 0
    """Of every draw."""
    source: Source
    task: Annotated[Guess | Classify, Field(discriminator="kind")]
    loop: Loop = Loop()


GOOD = """\
seed: 3
source:
  path: here
task:
  kind: guess
  head: mlp
  target: {kind: tiles, bits: 4, cells: 2}
loop:
  lr: 3e-4
  duration: {epochs: 2}
"""


def read(path: str | Path, *overrides: str) -> Tree:
    document = read_document(path)
    apply_overrides(document, Tree, overrides)
    return check(document, Tree)


def load(text: str, *overrides: str) -> Tree:
    Path("r.yaml").write_text(text)
    return read("r.yaml", *overrides)


def wrong(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert all(len(line) < 80 for line in str(caught.value).splitlines())
    return str(caught.value)


def block(message: str, heading: str) -> list[str]:
    """The lines of the one problem under `heading`, without their indentation, continued lines joined."""
    [found] = [part for part in message.split("\n\n") if part.splitlines()[0] == heading]
    lines: list[str] = []
    for line in found.splitlines()[1:]:
        if line.startswith("     "):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.strip())
    return lines
