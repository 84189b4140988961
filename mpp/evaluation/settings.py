"""What evaluation can be asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mpp.evaluation.arms import Arm
from mpp.settings import Duration, Settings

Pool = Literal["token", "avg", "both"]
Evaluator = Literal["few_shot", "knn", "linear_probe"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class FeatureSettings(Settings):
    """Which features of the frozen encoder are looked at."""

    blocks: Literal["last", "all"] | tuple[Count, ...] = "all"
    """Blocks whose tokens are taken, counted from 1; the last one is always among them."""

    pools: tuple[Pool, ...] = Field(default=("token", "avg", "both"), min_length=1)
    """How tokens become one feature: the class token, the mean of the patches, or both side by side. Models
    without a class token have `avg` alone."""

    batch_size: int = Field(default=256, ge=1)
    """Images that one process takes through the encoder at once."""


class FewShotSettings(Settings):
    """Linear few-shot: ridge regression in closed form on a few images of each class."""

    shots: tuple[Count, ...] = Field(default=(1, 5, 10, 25), min_length=1)
    """Images of each class."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Draws of the shots; the score is their mean."""

    l2: Positive | Literal["auto"] = 1024.0
    """λ of the ridge regression; `auto` chooses it on the shots, by leaving one of every class out at a time."""


class NeighbourSettings(Settings):
    """Nearest neighbours by cosine, weighted by exp(cosine / temperature)."""

    k: tuple[Count, ...] = Field(default=(20, 10, 100, 200), min_length=1)
    """Numbers of neighbours; the first is the headline, by which block and pool are chosen."""

    temperature: float = Field(default=0.07, gt=0)
    """The smaller, the more the nearest count."""


class ProbeSettings(Settings):
    """Linear probe: logistic regression on standardised features, to convergence."""

    grid: tuple[Positive, ...] = Field(default=(1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3), min_length=1)
    """Values of C (the penalty is 1 / C), chosen from on a tenth of train."""


class InTrainingSettings(Settings):
    """Looks at the encoder during pre-training, by images of the training split alone."""

    every: Duration = Duration(steps=0)
    """How often; the end of the run counts too. 0 means only at the end."""

    evaluators: tuple[Literal["few_shot", "knn"], ...] = ()
    """What is measured; empty looks at nothing. It needs labels, which masked patch prediction does not see. In
    supervised pre-training the network learns these very labels: there the accuracies say how well it knows them."""

    images: int = Field(default=5000, ge=2)
    """Labelled training images that are used: a seeded choice, the same share of every class."""

    dev: float = Field(default=0.2, gt=0, lt=1)
    """Share of them that is predicted from the others."""

    shots: tuple[Count, ...] = Field(default=(5,), min_length=1)
    """Of `few_shot`: images of each class; the score is the mean over three draws."""

    k: tuple[Count, ...] = Field(default=(20,), min_length=1)
    """Of `knn`: numbers of neighbours."""


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
