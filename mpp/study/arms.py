"""What a gap study compares: the arms by name, and the controls beside them."""

from __future__ import annotations

from typing import Literal

Arm = Literal["random", "scratch", "mean_color", "downsized", "full_patch", "mean_color_15", "supervised"]
MPP = ("mean_color", "downsized", "full_patch", "mean_color_15")
"""The arms that pre-train without labels."""
TITLES = {
    "random": "random start",
    "scratch": "scratch, total budget",
    "mean_color": "MPP, mean colour",
    "downsized": "MPP, 4×4 colours",
    "full_patch": "MPP, pixels by L2",
    "mean_color_15": "MPP, mean colour, 15 % corrupted",
    "supervised": "supervised",
    "raw_pixels": "raw pixels",
    "patch_colors": "patch colours",
}
