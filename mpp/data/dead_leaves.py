"""Dead-leaves images: scenes of occluding shapes, with the same pixels on every machine.

The density of the shapes' radii falls as r⁻³, which gives the edges, occlusions and scale invariance of natural images
(Lee, Mumford & Huang, "Occlusion Models for Natural Images", 2001; as pre-training data: Baradad et al., "Learning to
See by Looking at Noise", 2021). The label of variants a and b is the shape of the large leaf on top. Its colour, size,
position and texture do not depend on the label, and shapes of the same radius have the same area: neither mean colour
nor contrast gives the label away. Variant c is for quick trials, and easier: the top leaf covers half of the image, and
the label is its pattern, whose mean and contrast are those of all other patterns, while its phase, tilt and scale vary.

Only integers, the draws of `mpp.randomness` and elementwise + − × ÷ √, floor and comparisons in float64 are used, which
IEEE 754 defines to the last bit. Sine, logarithm, sums over floats and matrix products differ between machines.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from mpp import randomness
from mpp.data.leaf_forms import DISC, VARIANTS

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SIZE = 64

LEAVES = 160  # below the top one: leaf 0 is the ground, leaf LEAVES + 1 the top
LARGEST = 40.0  # radius in pixels; the smallest differs from scene to scene
WINDOWS = 8, 12, 18, 28, 44, SIZE  # a leaf is painted in the smallest of these squares that holds it
BLUR = 0.12  # share of a pixel's light that each neighbour gets
TILE = 256  # period of the noise texture


def class_names(variant: str) -> tuple[str, ...]:
    """The shapes or patterns of a variant; a label is an index into them."""
    if variant not in VARIANTS:
        raise ValueError(f"embedded data has no variant {variant!r}; it has {', '.join(map(repr, VARIANTS))}")
    return VARIANTS[variant].classes


def scenes(variant: str, samples: Integers) -> tuple[Pixels, Integers]:
    """The scenes of sample numbers, int64 `(n,)` ≥ 0: uint8 `(n, 64, 64, 3)`, and their labels, int64 `(n,)`."""
    classes = len(class_names(variant))
    # Every block of `classes` consecutive samples holds each label once, in a drawn order.
    block = (samples // classes)[:, None] * classes + np.arange(classes)
    order = np.argsort(_draw(variant, "label", block, 0)[0], axis=1, kind="stable")
    labels = order[np.arange(len(samples)), samples % classes]
    leaves = _leaves(variant, samples[:, None], labels[:, None])
    return _shade(variant, samples[:, None, None], leaves, _paint(variant, leaves)), labels


def _draw(variant: str, purpose: str, sample: Any, index: Any) -> tuple[Integers, ...]:
    key = randomness.key(0, f"embedded:{variant}/{purpose}")
    return randomness.words(key, np.asarray(sample, np.int64), np.asarray(index, np.int64))


def _signed(draw: Floats) -> Floats:
    return 2.0 * draw - 1.0


def _peaked(sign: Floats, size: Floats) -> Floats:
    """Two uniform draws as one in (−1, 1) with a peak at 0 and long tails, like chroma in photographs."""
    return _signed(sign) * size * size


def _direction(candidates: tuple[Integers, ...]) -> tuple[Floats, Floats]:
    """Unit vectors of uniform direction: the first of four points, one a word, in the disc, divided by its length."""
    points = [(2.0 * (word >> 16) - 65535.0, 2.0 * (word & 0xFFFF) - 65535.0) for word in candidates]
    x, y = points[-1]  # needed once in a hundred draws; one in 470 takes it though it lies outside as well
    for a, b in points[-2::-1]:
        inside = a * a + b * b < 4294967296.0
        x, y = np.where(inside, a, x), np.where(inside, b, y)
    length = np.sqrt(x * x + y * y)
    return x / length, y / length


class Leaves(NamedTuple):
    """The leaves of n scenes, from the ground up: arrays `(n, LEAVES + 2)`."""

    shape: Integers
    radius: Floats  # of the disc of the same area, in pixels
    x: Floats
    y: Floats
    cos: Floats
    sin: Floats
    light: Floats  # (R + G + B) / 3, where 1 is white
    yellow: Floats  # (R + G) / 2 − B
    red: Floats  # R − G
    slope: Floats  # change of brightness per pixel along the leaf's own axis u
    grain: Floats  # contrast of the noise texture
    fineness: Floats  # its frequency, in cells per pixel
    start: Integers  # the cell at the leaf's centre
    pattern: Integers  # which of the variant's patterns lies over it
    relief: Floats  # contrast of the pattern
    pitch: Floats  # its frequency, in periods per pixel
    ahead: Floats  # its shift along u, in periods
    aside: Floats  # and along v


def _leaves(variant: str, samples: Integers, labels: Integers) -> Leaves:
    shared = [randomness.unit(word) for i in range(5) for word in _draw(variant, "scene", samples, i)]
    kinds = VARIANTS[variant]
    number = np.arange(LEAVES + 2)
    top = number == LEAVES + 1
    direction, *groups = (_draw(variant, "leaf", samples, number + i * (LEAVES + 2)) for i in range(5))
    cos, sin = _direction(direction)
    words = [word for group in groups for word in group]
    size, x, y, light, apart, yellow, red, hue, slope, grain, fineness, relief, pitch = map(randomness.unit, words[:13])
    kind, start, pattern = words[13:16]
    # P(radius > r) falls as r⁻², whose inverse is a root.
    smallest = kinds.smallest + 4.0 * shared[0] * shared[0]  # some scenes are cluttered, some are not
    narrow, wide = 1.0 / (smallest * smallest), 1.0 / (LARGEST * LARGEST)
    radius = np.where(
        top, kinds.top[0] + (kinds.top[1] - kinds.top[0]) * size, 1.0 / np.sqrt(narrow - (narrow - wide) * size)
    )
    spread = np.where(top, kinds.jitter, 0.5 * SIZE + 8.0)
    # The top leaf is a little darker or lighter than most of the scene, whichever has room.
    middle, contrast = 0.21 + 0.54 * shared[1], 0.15 + 0.75 * shared[2]
    darker = 3.0 * (middle - 0.3) > light
    apart = np.where(darker, middle * (0.7 - 0.35 * apart), middle + 0.16 + 0.16 * apart)
    light = np.clip(np.where(top, apart, middle + contrast * (light - 0.5)), 0.03, 0.97)
    # As in photographs: each scene has a tint and a few hues, blue to orange more than green to purple, with little
    # chroma in the dark and the bright.
    hue_yellow, hue_red = (
        np.where(hue < 0.45, a, np.where(hue < 0.8, b, c))
        for a, b, c in ([_peaked(*shared[i : i + 2]) for i in range(start, start + 6, 2)] for start in (8, 14))
    )
    chroma = kinds.chroma * light * (1.0 - light)
    tint_yellow, tint_red = _peaked(*shared[4:6]), _peaked(*shared[6:8])
    yellow = chroma * (0.04 + 0.4 * tint_yellow + 0.5 * hue_yellow + 0.2 * _peaked(yellow, hue))
    red = 0.47 * yellow + chroma * (0.25 * tint_red + 0.32 * hue_red + 0.15 * _peaked(red, hue))
    grain, relief, pitch = 0.15 + 0.7 * grain * grain, 0.4 * relief * relief, 0.06 + 0.2 * pitch
    shape, form = randomness.below(kind, len(kinds.shapes)), randomness.below(pattern, len(kinds.patterns))
    ahead = aside = np.zeros_like(pitch)
    if kinds.by_pattern:
        # The top leaf's pattern is the clearest, upright but for a tilt. Its dots may be dark or bright.
        sin = np.where(top, 0.35 * sin, sin)
        cos = np.where(top, np.sqrt(1.0 - sin * sin), cos)
        grain, relief = np.where(top, 0.2, 0.5) * grain, np.where(top, 0.4 + 0.5 * relief, 0.5 * relief)
        pitch = np.where(top, 0.03 + 0.15 * pitch, pitch)
        ahead, aside = (start >> 8 & 0xFF) / 256.0 - 0.5, (start & 0xFF) / 256.0 - 0.5
        relief, form = np.where(pattern & 1 == 1, relief, -relief), np.where(top, labels, form)
    else:
        shape = np.where(top, labels, shape)
    return Leaves(
        shape=shape,
        radius=radius,
        x=0.5 * (SIZE - 1) + spread * _signed(x),
        y=0.5 * (SIZE - 1) + spread * _signed(y),
        cos=cos,
        sin=sin,
        light=light,
        yellow=yellow,
        red=red,
        slope=0.3 * _signed(slope) / np.maximum(radius, 6.0),
        grain=grain,
        fineness=0.15 + 0.85 * fineness,
        start=randomness.below(start, TILE * TILE),
        pattern=form,
        relief=relief,
        pitch=pitch,
        ahead=ahead,
        aside=aside,
    )


def _paint(variant: str, leaves: Leaves) -> Integers:
    """The leaf that is seen at each pixel: int64 `(n, 64, 64)`, an index along the leaves' second axis."""
    seen = np.zeros(len(leaves.radius) * SIZE * SIZE, np.int64)
    shapes = VARIANTS[variant].shapes
    unit = np.array([np.sqrt(DISC / shape.area) for shape in shapes])[leaves.shape] * leaves.radius
    width = 2.0 * unit * np.array([shape.reach for shape in shapes])[leaves.shape] + 2.0
    window_of = np.minimum(np.searchsorted(WINDOWS, width), len(WINDOWS) - 1)
    window_of[:, 0] = -1  # the ground is everywhere already
    for number, window in enumerate(WINDOWS):
        step = np.arange(window)
        for kind, shape in enumerate(shapes):
            image, leaf = np.nonzero((window_of == number) & (leaves.shape == kind))
            x, y = leaves.x[image, leaf], leaves.y[image, leaf]
            left, upper = (np.clip(np.floor(c - 0.5 * window + 1.0), 0, SIZE - window).astype(np.int64) for c in (x, y))
            right, down = (left - x)[:, None, None] + step, (upper - y)[:, None, None] + step[:, None]
            cos, sin = ((c[image, leaf] / unit[image, leaf])[:, None, None] for c in (leaves.cos, leaves.sin))
            inside = shape.inside(cos * right + sin * down, cos * down - sin * right)
            pixel = ((image * SIZE + upper) * SIZE + left)[:, None, None] + (SIZE * step[:, None] + step)
            np.maximum.at(seen, pixel[inside], np.broadcast_to(leaf[:, None, None], inside.shape)[inside])
    return seen.reshape(-1, SIZE, SIZE)


@functools.cache
def _noise(variant: str) -> Floats:
    """Fractal value noise, periodic: float64 `(256, 256)`, linear between integers drawn on six lattices."""
    total = np.zeros((TILE, TILE), np.int64)
    for octave, amplitude in enumerate((8, 10, 12, 15, 19, 24)):
        step = 1 << octave
        part = np.arange(step)[:, None]
        points = np.arange((TILE // step) ** 2)
        lattice = randomness.below(_draw(variant, "noise", points, octave)[0], 2001).reshape(TILE // step, -1) - 1000
        for _ in range(2):  # along one axis, then along the other
            lattice = lattice[:, None] * (step - part) + np.roll(lattice, -1, axis=0)[:, None] * part
            lattice = lattice.reshape(TILE, -1).T
        total += amplitude * lattice // (step * step)
    return total / 40000.0


def _shade(variant: str, samples: Integers, leaves: Leaves, seen: Integers) -> Pixels:
    """Colour, texture, light, shadow and blur of what is seen: uint8 `(n, 64, 64, 3)`."""
    images, count = leaves.radius.shape
    first = np.arange(images)[:, None, None]
    leaf = Leaves(*(np.take(values, seen + count * first) for values in leaves))
    lamp_x, lamp_y, shadow, toward = _draw(variant, "lamp", samples, 0)
    column, row = np.arange(SIZE), np.arange(SIZE)[:, None]
    right, down = column - leaf.x, row - leaf.y
    u, v = leaf.cos * right + leaf.sin * down, leaf.cos * down - leaf.sin * right

    a, b = u * leaf.fineness, v * leaf.fineness * VARIANTS[variant].stretch
    j, i = np.floor(a), np.floor(b)
    a, b = a - j, b - i
    cell = leaf.start + TILE * i.astype(np.int64) + j.astype(np.int64)
    tile = _noise(variant)
    here, beside, below, across = (np.take(tile, cell + step & tile.size - 1) for step in (0, 1, TILE, TILE + 1))
    noise = (1.0 - b) * ((1.0 - a) * here + a * beside) + b * ((1.0 - a) * below + a * across)
    texture = leaf.grain * noise
    for kind, pattern in enumerate(VARIANTS[variant].patterns):
        at = leaf.pattern == kind
        texture[at] += leaf.relief[at] * pattern.normalized(
            u[at] * leaf.pitch[at] + leaf.ahead[at], v[at] * leaf.pitch[at] + leaf.aside[at], noise[at]
        )

    lamp = _signed(randomness.unit(lamp_x)) * (column - 31.5) + _signed(randomness.unit(lamp_y)) * (row - 31.5)
    bright = np.maximum(1.0 + leaf.slope * u + 0.006 * lamp + texture, 0.1)
    # A leaf throws a narrow shadow on those beneath it.
    toward = randomness.below(toward, 25)
    x, y = np.clip(column + toward % 5 - 2, 0, SIZE - 1), np.clip(row + toward // 5 - 2, 0, SIZE - 1)
    bright *= np.where(seen[first, y, x] > seen, 1.0 - 0.5 * randomness.unit(shadow), 1.0)
    pixels = np.empty((images, SIZE, SIZE, 3), np.uint8)
    red_green = leaf.light + leaf.yellow / 3.0
    for channel, color in enumerate((red_green + 0.5 * leaf.red, red_green - 0.5 * leaf.red, red_green - leaf.yellow)):
        light = color * bright
        for _ in range(2):  # binomial blur along one axis, then along the other
            light = np.concatenate((light[:, :1], light, light[:, -1:]), axis=1)
            light = (BLUR * (light[:, :-2] + light[:, 2:]) + (1.0 - 2.0 * BLUR) * light[:, 1:-1]).transpose(0, 2, 1)
        pixels[..., channel] = np.clip(np.floor(255.0 * light + 0.5), 0, 255).astype(np.uint8)
    return pixels
