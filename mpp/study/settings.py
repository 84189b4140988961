"""What the `study:` part of a recipe can say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mpp.settings import Settings
from mpp.study.arms import Arm

Count = Annotated[int, Field(ge=1)]


class OtherEncoder(Settings):
    """A size of the encoder, or another network, as a study compares them."""

    name: str | None = None
    """Another timm model, e.g. `resnet18` with `arms: [supervised]`; null keeps the study's."""

    patch_size: Annotated[int, Field(ge=1)] | None = None
    """Another side of a patch; null keeps the study's, or takes the other model's own."""

    arguments: dict[str, Any] = {}
    """Arguments of the timm model: of another `name` all of them, else those that differ."""

    pool: Literal["token", "avg"] | None = None
    """null keeps the study's."""

    arms: tuple[Arm, ...] | None = None
    """The arms that are run with it; null takes `axis_arms`."""


class StudySettings(Settings):
    """What is compared in a gap study."""

    arms: tuple[Arm, ...] = (
        "random", "scratch", "mean_color", "downsized", "full_patch", "mean_color_15", "supervised",
    )  # fmt: skip
    """`random`: random weights, fine-tuned as all others are. `scratch`: fine-tuned from random weights on as many
    images as pre-training and fine-tuning see together. `mean_color`, `downsized`, `full_patch`: masked patch
    prediction of each target, `mean_color_15` with 15 % of the patches corrupted. `supervised`: classification of the
    upstream images."""

    seeds: tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Each arm is run once with each; arms are compared seed by seed."""

    controls: bool = True
    """Measure raw pixels and patch colours as frozen features too."""

    both_ways: bool = False
    """Do all of it again with upstream and downstream exchanged."""

    images: tuple[Count, ...] = ()
    """Besides all upstream images, pre-train on so many of them, for as many steps."""

    sizes: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], OtherEncoder] = {}
    """Besides the study's encoder, others, each with a name for the report."""

    axis_arms: tuple[Arm, ...] = ("mean_color", "supervised")
    """The arms that are run for `images` and `sizes`."""

    scale: float = Field(default=1.0, gt=0)
    """Multiplies the length of all training, and of its intervals and warm-ups: a study in small."""

    minutes: float | None = Field(default=None, gt=0)
    """Stop, saved, after so long; the same command goes on. null does all of it at once."""

    parallel: int = Field(default=1, ge=1)
    """How many arms run at once, each on its share of this machine's cores and on the GPUs in turn; small networks
    leave most of either idle. With other threads, results are the same up to rounding. A `training.threads` that is
    set holds for each of them."""

    only: tuple[str, ...] = ()
    """Run these alone, e.g. `[mean_color/seed-0]`, and write no report: so a study is spread over machines, and so
    each arm runs in a process of its own."""
