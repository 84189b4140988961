"""How each arm looks, the same in every figure: colour, marker and dashes, told apart without colour too."""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """The look of an arm."""

    name: str
    """Of its CSS colour, `--arm-…`."""
    light: str
    """Colour on a light page, lower-case hex; each look has its own."""
    dark: str
    """Colour on a dark page."""
    marker: str
    """By matplotlib's name."""
    dashes: tuple[float, ...] = ()
    """On and off, in line widths; empty draws through."""


# After Okabe and Ito (2008), darkened or lightened until each has a contrast of 3 : 1 with the page behind it.
LOOKS = {
    "random": Look("random", "#767676", "#a9a9a9", "x", (1, 1.2)),
    "scratch": Look("scratch", "#8a6d00", "#d8be4a", "v", (5, 1.5, 1, 1.5)),
    "mean_color": Look("mean-color", "#0072b2", "#5ba8e6", "o"),
    "downsized": Look("downsized", "#008f68", "#35c795", "s", (6, 1.5)),
    "full_patch": Look("full-patch", "#b8568d", "#e09ac4", "^", (3, 1.2)),
    "mean_color_15": Look("mean-color-15", "#2b8fc9", "#9ad6f9", "D", (1.5, 1)),
    "supervised": Look("supervised", "#d55e00", "#ff8a3d", "P"),
    "raw_pixels": Look("raw-pixels", "#6b5344", "#c9ad9a", "p", (1, 2.5)),
    "patch_colors": Look("patch-colors", "#4f5d63", "#a5b6bd", "d", (2, 2.5)),
}
OTHER = Look("other", "#5b5b8c", "#a9a9dd", "*", (4, 2))

# The rest of a figure: what it is drawn with, and what the page has for it.
INK, MUTED, RULE, BAND, PAPER = "#101112", "#626364", "#d9dadb", "#f2f3f4", "#fefeff"
CSS = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", BAND: "var(--band)", PAPER: "var(--card)"}
CSS |= {look.light: f"var(--arm-{look.name}, {look.light})" for look in (*LOOKS.values(), OTHER)}

_KEYS = {  # markers as paths around (20, 6): filled ones closed
    "o": "M16 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M16.3 2.3h7.4v7.4h-7.4z",
    "^": "M20 1.4l4.5 8.4h-9z",
    "v": "M20 10.6l4.5-8.4h-9z",
    "D": "M20 1l4.6 5-4.6 5-4.6-5z",
    "P": "M18.2 .6h3.6v3.6h3.6v3.6h-3.6v3.6h-3.6v-3.6h-3.6v-3.6h3.6z",
    "*": "M20 1l1.5 3.5 3.7.3-2.8 2.5.9 3.7-3.3-2-3.3 2 .9-3.7-2.8-2.5 3.7-.3z",
    "x": "M16.5 2.5l7 7M16.5 9.5l7-7",
    "p": "M20 1.6l4.4 3.2-1.7 5.1h-5.4l-1.7-5.1z",
    "d": "M20 .8l3 5.2-3 5.2-3-5.2z",
}
STROKED = "x"
"""Markers that are strokes, without an inside."""


def look_of(arm: str) -> Look:
    """The look of an arm; all that are not known share one."""
    return LOOKS.get(arm, OTHER)


class Key(NamedTuple):
    """What a legend shows of an arm."""

    title: str
    name: str
    marker: str
    """An SVG path in a box of 40 × 12."""
    filled: bool
    dashes: str
    """As SVG has them."""


def key(arm: str, title: str) -> Key:
    """The legend's entry of an arm."""
    look = look_of(arm)
    dashes = " ".join(f"{2 * length:g}" for length in look.dashes)
    return Key(title, look.name, _KEYS[look.marker], look.marker not in STROKED, dashes)
