"""The variants of the embedded images: the outlines and the textures of their leaves.

As in `mpp.data.dead_leaves`, only elementwise + − × ÷ √, floor and comparisons in float64 are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Booleans = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Shape(NamedTuple):
    """The outline of a leaf: in its own coordinates `inside(x, y)`, its area and its largest radius `reach`."""

    name: str
    area: float
    reach: float
    inside: Callable[[Floats, Floats], Booleans]


DISC = 3.141592653589793
TALL = 0.8660254037844386  # √3 / 2, the sine of 60°
PENTAGON = ((0.0, 1.0), (0.9510565162951535, 0.3090169943749474), (0.5877852522924731, -0.8090169943749475),
            (-0.5877852522924731, -0.8090169943749475), (-0.9510565162951535, 0.3090169943749474))  # fmt: skip


def _disc(x: Floats, y: Floats, square: float) -> Booleans:
    return x * x + y * y < square


def _box(x: Floats, y: Floats, width: float, height: float) -> Booleans:
    return (np.abs(x) < width) & (np.abs(y) < height)


def _triangle(x: Floats, y: Floats) -> Booleans:
    return (y > -0.5) & (TALL * np.abs(x) + 0.5 * y < 0.5)


def _heart(x: Floats, y: Floats) -> Booleans:
    y = y + 0.15
    return _disc(np.abs(x) - 0.52, y - 0.45, 0.36) | ((y < 0.2) & (0.75 * np.abs(x) - 0.66 * y < 0.693))


def _star(x: Floats, y: Floats) -> Booleans:
    # A pentagram lies in at least four of five half-planes. Its tips lie at distance 1.
    return np.stack([a * x + b * y > -0.30901699437494745 for a, b in PENTAGON]).sum(axis=0, dtype=np.int8) >= 4


SHAPES: dict[str, tuple[Shape, ...]] = {
    "a": (
        Shape("disc", DISC, 1.0, lambda x, y: _disc(x, y, 1.0)),
        Shape("ring", 2.1049, 1.0, lambda x, y: _disc(x, y, 1.0) & ~_disc(x, y, 0.33)),
        Shape("half disc", 1.5708, 1.09, lambda x, y: _disc(x, y + 0.42, 1.0) & (y > -0.42)),
        Shape("crescent", 1.4819, 1.17, lambda x, y: _disc(x - 0.25, y, 1.0) & ~_disc(x - 0.8, y, 0.72)),
        Shape("heart", 3.0247, 1.22, _heart),
        Shape("drop", 2.3904, 1.31, lambda x, y: _disc(x, y + 0.5, 0.64) | ((y > -0.2) & (np.abs(x) + 0.6 * y < 0.62))),
        Shape("triangle", 1.299, 1.0, _triangle),
        Shape("square", 4.0, 1.4143, lambda x, y: _box(x, y, 1.0, 1.0)),
        Shape("cross", 2.2044, 1.06, lambda x, y: _box(x, y, 1.0, 0.33) | _box(x, y, 0.33, 1.0)),
        Shape("star", 1.1226, 1.0, _star),
    ),
    "b": (
        Shape("ellipse", DISC, 1.5, lambda x, y: _disc(x, 2.25 * y, 2.25)),
        Shape("frame", 2.56, 1.4143, lambda x, y: _box(x, y, 1.0, 1.0) & ~_box(x, y, 0.6, 0.6)),
        Shape("hexagon", 2.598, 1.0, lambda x, y: (np.abs(y) < TALL) & (TALL * np.abs(x) + 0.5 * np.abs(y) < TALL)),
        Shape("six-pointed star", 1.732, 1.0, lambda x, y: _triangle(x, y) | _triangle(x, -y)),
        Shape("clover", 3.5614, 1.25, lambda x, y: _disc(np.abs(x) - 0.5, np.abs(y) - 0.5, 0.29)),
        Shape("arrow", 1.4091, 1.04, lambda x, y: _box(x, y + 0.5, 0.25, 0.5) | ((y > 0) & (1.1 * np.abs(x) + y < 1))),
        Shape("corner", 1.56, 1.14, lambda x, y: _box(x, y, 0.8, 0.8) & (np.minimum(x, y) < -0.2)),
        Shape("bow tie", 2.2222, 1.5, lambda x, y: (np.abs(x) < 1.0) & (0.9 * np.abs(y) < np.abs(x))),
        Shape("bar", 1.2, 1.05, lambda x, y: _box(x, y, 1.0, 0.3)),
        Shape("pie", 2.356, 1.0, lambda x, y: _disc(x, y, 1.0) & (np.abs(y) > x)),
    ),
}  # fmt: skip
COMPACT = "disc", "heart", "square", "hexagon", "clover"  # those that show much of a texture
SHAPES["c"] = tuple(shape for shapes in SHAPES.values() for shape in shapes if shape.name in COMPACT)


class Pattern(NamedTuple):
    """The pattern over a leaf's noise.

    `at(u, v, noise)` is a function of the coordinates along the texture's axes, in periods, and of the noise. `mean` is
    its mean over the plane, and `spread` its standard deviation from that; a pattern without a name is used as it is.
    """

    at: Callable[[Floats, Floats, Floats], Floats]
    name: str = ""
    mean: float = 0.0
    spread: float = 1.0

    def normalized(self, u: Floats, v: Floats, noise: Floats) -> Floats:
        """With a mean of 0 and a spread of 1, so that neither mean colour nor contrast tells which pattern it is."""
        return (self.at(u, v, noise) - self.mean) / self.spread if self.name else self.at(u, v, noise)


def _wave(t: Floats) -> Floats:
    """A triangle wave of period 1 between −1 and 1."""
    return 4.0 * np.abs(t - np.floor(t) - 0.5) - 1.0


def _clipped(values: Floats) -> Floats:
    return np.clip(values, -1.0, 1.0)


def _bricks(u: Floats, v: Floats) -> Floats:
    """Thin joints; every second row is moved by half a brick."""
    row = np.floor(v)
    odd = row - 2.0 * np.floor(0.5 * row)
    return _clipped(5.0 * (0.55 - np.maximum(_wave(v), 2.0 * _wave(0.5 * u + 0.5 * odd) - 1.0)))


def _rays(u: Floats, v: Floats) -> Floats:
    """Eight rays; the angle is the way around a square."""
    along = v / (np.abs(u) + np.abs(v) + 1e-9)
    return _clipped(3.0 * _wave(2.0 * np.where(u < 0.0, 2.0 - along, along)))


PATTERNS: dict[str, tuple[Pattern, ...]] = {
    "a": (
        Pattern(lambda u, v, noise: noise),
        Pattern(lambda u, v, noise: np.clip(2.0 * _wave(u + 0.5 * noise), -1.0, 1.0)),  # wavy stripes
        Pattern(lambda u, v, noise: np.clip(2.0 * (_wave(u) + _wave(v)) - 1.4, -1.0, 1.0)),  # dots
    ),
    "b": (
        Pattern(lambda u, v, noise: noise),
        Pattern(lambda u, v, noise: np.clip(6.0 * _wave(u) * _wave(v), -1.0, 1.0)),  # checks
        Pattern(lambda u, v, noise: np.maximum(1.0 - 8.0 * np.abs(noise), -1.0)),  # veins
    ),
    "c": (
        Pattern(lambda u, v, noise: _clipped(3.0 * _wave(u)), "stripes", 0.0, 0.882),
        Pattern(lambda u, v, noise: _clipped(6.0 * _wave(0.5 * u) * _wave(0.5 * v)), "checks", 0.0, 0.808),
        Pattern(lambda u, v, noise: _clipped(3.0 * (_wave(u) + _wave(v)) - 2.0), "dots", -0.546, 0.744),
        Pattern(lambda u, v, noise: _clipped(3.0 * _wave(np.sqrt(u * u + v * v))), "rings", 0.01, 0.882),
        Pattern(lambda u, v, noise: np.maximum(1.0 - 8.0 * np.abs(noise), -1.0), "veins", -0.516, 0.647),
        Pattern(lambda u, v, noise: _clipped(3.0 * _wave(v + 0.4 * _wave(0.5 * u))), "zigzag", 0.0, 0.882),
        Pattern(lambda u, v, noise: _clipped(4.0 * np.maximum(_wave(u), _wave(v)) - 2.4), "grid", -0.29, 0.806),
        Pattern(lambda u, v, noise: _bricks(u, v), "bricks", 0.379, 0.829),
        Pattern(
            lambda u, v, noise: _clipped(
                2.5 * (_wave(u) + _wave(0.5 * u + TALL * v) + _wave(0.5 * u - TALL * v)) + 0.3
            ),
            "scales", -0.084, 0.915,
        ),
        Pattern(lambda u, v, noise: _rays(u, v), "rays", 0.083, 0.882),
    ),
}  # fmt: skip


class Variant(NamedTuple):
    """A kind of scene: the label is the shape of the leaf on top or, if the patterns have names, its pattern."""

    shapes: tuple[Shape, ...]
    patterns: tuple[Pattern, ...]
    stretch: float
    """Frequency of the noise along the second axis over that along the first."""
    top: tuple[float, float]
    """Radii of the top leaf, in pixels."""
    jitter: float
    """How far the top leaf's centre lies from the image's, at most, in x and in y."""
    smallest: float
    """Radius of the smallest leaves of the most cluttered scenes, in pixels."""
    chroma: float
    """Times light × darkness: how strong colours are."""

    @property
    def by_pattern(self) -> bool:
        """Whether the label is the top leaf's pattern, else its shape."""
        return bool(self.patterns[0].name)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return tuple(each.name for each in (self.patterns if self.by_pattern else self.shapes))


VARIANTS = {
    "a": Variant(SHAPES["a"], PATTERNS["a"], 1.0, (13.0, 17.5), 7.0, 1.6, 3.6),  # an eighth to a quarter of the image
    "b": Variant(SHAPES["b"], PATTERNS["b"], 3.0, (13.0, 17.5), 7.0, 1.6, 3.6),
    "c": Variant(SHAPES["c"], PATTERNS["c"], 1.0, (27.0, 32.0), 7.0, 7.0, 1.0),  # about a half
}
