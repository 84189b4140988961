"""Settings of a study."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mpp.evaluation.settings import CONTROLS
from mpp.objective.targets import Target
from mpp.settings import Settings
from mpp.study.arms import PRESETS, Arm

Count = Annotated[int, Field(ge=1)]
Rates = tuple[Annotated[float, Field(gt=0)], ...]
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


class PilotSettings(Settings):
    """How each arm's learning rates are chosen before the study's seeds run: one seed tries a grid, the same for every
    arm, and is evaluated on downstream training images that nothing trains on.
    """

    seed: int = Field(default=1000, ge=0, le=2**32 - 1)
    """None of the study's seeds."""

    reserved: float = Field(default=0.1, gt=0, lt=1)
    """Share of the downstream training images of each class that is reserved for the pilot: no run trains on them, not
    even after the pilot."""

    lr: Rates = ()
    """Learning rates of pre-training; empty takes each arm's own. An arm takes the one whose fine-tuning is best, or
    without fine-tuning whose linear probe is (else kNN, else few-shot)."""

    finetuning_lr: Rates = ()
    """Learning rates of fine-tuning, chosen for each share of the labels; empty takes the study's own."""

    pools: tuple[Literal["token", "avg"], ...] = ()
    """Pools of fine-tuning, each with its own rate; empty takes the encoder's own."""

    length: float = Field(default=1.0, gt=0, le=1)
    """Pre-training in the pilot is so many times as long as in the study, and so is its part of a total budget;
    fine-tuning keeps its length."""

    @model_validator(mode="after")
    def _tries_something(self) -> PilotSettings:
        if not (self.lr or self.finetuning_lr or self.pools):
            raise ValueError("the pilot has nothing to choose from: give lr, finetuning_lr or pools")
        return self


class TuningChoice(Settings):
    """What a pilot chose for fine-tuning."""

    lr: float | None = Field(default=None, gt=0)
    """null takes the study's own."""

    pool: Literal["token", "avg"] | None = None
    """null takes the encoder's own."""


class Choice(Settings):
    """What a pilot chose for an arm."""

    lr: float | None = Field(default=None, gt=0)
    """The learning rate of pre-training; null takes the arm's own."""

    finetuning: dict[str, TuningChoice] = {}
    """By the share of the labels, e.g. `{"0.1": {lr: 1.0e-3}}`."""


class ClaimSettings(Settings):
    """A claim: one arm is more accurate than another."""

    higher: str
    """The arm that is claimed to be better."""

    lower: str
    """The arm that it is compared with."""

    by: Literal["few_shot", "knn", "linear_probe", "finetune"]
    """The evaluator."""

    setting: float | None = None
    """Shots, k, or the share of the labels; null takes the most shots, the first k, the first share."""


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

    lengths: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Besides the recipe's length of pre-training, so many times as long, e.g. `[0.25, 0.0625]`. Fine-tuning keeps its
    length."""

    sizes: dict[Name, OtherEncoder] = {}
    """Besides the study's encoder, others, each with a name for the report."""

    corruptions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Besides each arm's own, these shares of corrupted patches, for arms whose objective corrupts."""

    targets: dict[Name, Target] = {}
    """Besides each arm's own, these targets, each with a name for the report, for arms whose objective has one."""

    crossed: bool = False
    """Run every combination of `images`, `lengths`, `sizes`, `corruptions` and `targets`; otherwise one at a time."""

    axis_arms: tuple[str, ...] = ("mean_color", "supervised")
    """The arms that are run along these axes, if they pre-train."""

    pilot: PilotSettings | None = None
    """Choose each arm's learning rates before the study's seeds run; null takes those of the recipe."""

    choices: dict[Name, Choice] = {}
    """What an earlier pilot chose for each arm. A study with a pilot writes its own here, in the recipe.yaml of its
    folder."""

    primary: tuple[ClaimSettings, ...] | None = Field(default=None, max_length=6)
    """The claims that the study is made for, named before it runs, and corrected for their number by Holm's method;
    everything else is exploratory. They cannot be changed once there are results. null takes those of the first
    self-supervised arm: above scratch and below supervised when fine-tuned, above random by kNN, linear probe and
    few-shot."""

    keep: str | None = None
    """A folder, e.g. in git, in which finished units are kept: their numbers and predictions, without weights. Units
    that are there count as done, also on another machine."""

    report_only: bool = False
    """Run nothing: write results and report from the units that are finished. `mpp gap RECIPE --report-only`."""

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
        asked |= {"study.choices": tuple(self.choices)}
        asked |= {f"study.sizes.{name}.arms": other.arms or () for name, other in self.sizes.items()}
        known = self._known()
        for setting, names in asked.items():
            for name in names:
                if name not in known:
                    raise ValueError(f"{setting}: there is no arm {name!r}; known are {', '.join(known)}")
        run = (*self.names, *(CONTROLS if self.controls else ()))
        for number, claim in enumerate(self.primary or ()):
            for name in (claim.lower, claim.higher):
                if name not in run:
                    raise ValueError(
                        f"study.primary: claim {number + 1} is about the arm {name!r}, which this study does not run; "
                        f"it runs {', '.join(run)}; study.primary=null takes the usual claims of these"
                    )
        return self

    def _known(self) -> dict[str, Arm]:
        """The presets and the study's own arms."""
        own = self.arms if isinstance(self.arms, dict) else {}
        return PRESETS | {name: arm for name, arm in own.items() if arm is not None}

    @model_validator(mode="after")
    def _pilot_has_a_seed_of_its_own(self) -> StudySettings:
        if self.pilot is not None and self.pilot.seed in self.seeds:
            raise ValueError(f"pilot.seed {self.pilot.seed} is one of study.seeds; the pilot needs one of its own")
        return self

    @property
    def has_axes(self) -> bool:
        """Whether arms are run along an axis."""
        return bool(self.images or self.lengths or self.sizes or self.corruptions or self.targets)

    @property
    def names(self) -> tuple[str, ...]:
        """All arms that are run, those along axes included."""
        axes = self.axis_arms if self.images or self.lengths or self.corruptions or self.targets else ()
        others = [self.axis_arms if other.arms is None else other.arms for other in self.sizes.values()]
        return tuple(dict.fromkeys((*self.arms, *axes, *itertools.chain(*others))))

    @property
    def with_labels(self) -> tuple[str, ...]:
        """The arms that pre-train with upstream labels."""
        return tuple(name for name in self.names if self.arm(name).role == "supervised")

    def arm(self, name: str) -> Arm:
        """The arm of this name, of the study's own or a preset."""
        return self._known()[name]
