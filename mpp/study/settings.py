"""Settings of a study."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mpp.settings import Settings
from mpp.study.arms import PRESETS, Arm

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]

Arms = Annotated[
    Annotated[tuple[str, ...], Tag("names")] | Annotated[dict[Name, Arm | None], Tag("arms")],
    Discriminator(lambda value: "arms" if isinstance(value, dict) else "names"),
]
"""Names of presets, or arms by name; what is wrong is then reported of the one that was given."""


class OtherEncoder(Settings):
    """Another size of the encoder, or another network."""

    name: str | None = None
    """Another timm model, e.g. `resnet18` with `arms: [supervised]`; null keeps the study's."""

    patch_size: Annotated[int, Field(ge=1)] | None = None
    """Another side of a patch; null keeps the study's, or takes the other model's own."""

    arguments: dict[str, Any] = {}
    """Arguments of the timm model: of another `name` all of them, else those that differ."""

    pool: Literal["token", "avg"] | None = None
    """null keeps the study's."""

    arms: tuple[str, ...] | None = None
    """The arms that are run with it; null takes `axis_arms`."""


class StudySettings(Settings):
    """What is compared in a gap study."""

    arms: Arms = (
        "random", "scratch", "mean_color", "downsized", "full_patch", "mean_color_15", "supervised",
    )  # fmt: skip
    """Names of presets, or a mapping from names of your own to arms; null is the preset of that name, e.g.
    `{random: null, mine: {title: my arm, objective: {kind: masked_patch}, optimizer: {lr: 3.0e-3}}}`.
    Presets: `random`: random weights, fine-tuned as all others are. `scratch`: fine-tuned from random weights on as
    many images as pre-training and fine-tuning see together. `mean_color`, `downsized`, `full_patch`: masked patch
    prediction of each target, `mean_color_15` with 15 % of the patches corrupted. `supervised`: classification of the
    upstream images."""

    seeds: tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Each arm is run once with each; arms are compared seed by seed."""

    controls: bool = True
    """Evaluate raw pixels and patch colours as frozen features too."""

    both_ways: bool = False
    """Run the study in the swapped direction too: upstream and downstream exchanged."""

    images: tuple[Count, ...] = ()
    """Besides all upstream images, pre-train on so many of them, for as many steps."""

    sizes: dict[Name, OtherEncoder] = {}
    """Besides the study's encoder, others, each with a name for the report."""

    axis_arms: tuple[str, ...] = ("mean_color", "supervised")
    """The arms that are run for `images` and `sizes`."""

    scale: float = Field(default=1.0, gt=0)
    """Multiplies the length of pre-training, with its intervals and warm-up. Fine-tuning keeps its length: shorten it
    with `finetuning.training.duration`."""

    minutes: float | None = Field(default=None, gt=0)
    """Save and stop after so long; the same command resumes. null runs to the end."""

    parallel: int = Field(default=1, ge=1)
    """How many arms run at once, each on an equal number of this machine's cores, and on the GPUs in turn; small
    networks leave most of either idle. With other threads, results are the same up to rounding. A `training.threads`
    that is set holds for each of them."""

    only: tuple[str, ...] = ()
    """Run these alone, e.g. `[mean_color/seed-0]`, and write no report: so a study is spread over machines, and so
    each arm runs in a process of its own."""

    @model_validator(mode="after")
    def _arms_are_known(self) -> StudySettings:
        asked = {"study.arms": tuple(self.arms), "study.axis_arms": self.axis_arms}
        asked |= {f"study.sizes.{name}.arms": other.arms or () for name, other in self.sizes.items()}
        known = self._known()
        for setting, names in asked.items():
            for name in names:
                if name not in known:
                    raise ValueError(f"{setting}: there is no arm {name!r}; known are {', '.join(known)}")
        return self

    def _known(self) -> dict[str, Arm]:
        """The presets and the study's own arms."""
        own = self.arms if isinstance(self.arms, dict) else {}
        return PRESETS | {name: arm for name, arm in own.items() if arm is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """All arms that are run, those for `images` and `sizes` included."""
        axes = self.axis_arms if self.images else ()
        others = [self.axis_arms if other.arms is None else other.arms for other in self.sizes.values()]
        return tuple(dict.fromkeys((*self.arms, *axes, *itertools.chain(*others))))

    @property
    def with_labels(self) -> tuple[str, ...]:
        """The arms that pre-train with upstream labels."""
        return tuple(name for name in self.names if self.arm(name).role == "supervised")

    def arm(self, name: str) -> Arm:
        """The arm of this name, of the study's own or a preset."""
        return self._known()[name]
