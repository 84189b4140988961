"""Settings of evaluation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mpp.settings import Duration, Settings

Pool = Literal["token", "avg", "both"]
CONTROLS = ("raw_pixels", "patch_colors")
"""Values of `encoder.source` that are no encoders: frozen features that have learnt nothing."""
Evaluator = Literal["few_shot", "knn", "linear_probe"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class FeatureSettings(Settings):
    """Which features of the frozen encoder are evaluated."""

    blocks: Literal["last", "all"] | tuple[Count, ...] = "all"
    """Blocks whose tokens are taken, counted from 1; the last one is always among them."""
    pools: tuple[Pool, ...] = Field(default=("token", "avg", "both"), min_length=1)
    """How tokens become one feature: the class token, the mean of the patches, or both side by side. Models
    without a class token have `avg` alone."""
    batch_size: int = Field(default=256, ge=1)
    """Images that one process takes through the encoder at once."""


class LayerSettings(Settings):
    """Which feature of the frozen encoder is written."""

    block: Count | None = None
    """The block whose tokens are taken, counted from 1; null takes the last."""
    pool: Pool | None = "avg"
    """How tokens become one feature: the mean of the patches, the class token, or both side by side; null takes the
    encoder's own. Networks without patches have their own alone."""
    batch_size: int = Field(default=256, ge=1)
    """Images that go through the encoder at once."""


class FewShotSettings(Settings):
    """Linear few-shot: ridge regression in closed form on a few images of each class."""

    name: ClassVar[str] = "few_shot"
    shots: tuple[Count, ...] = Field(default=(1, 5, 10, 25), min_length=1)
    """Images of each class."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Draws of the shots; the score is their mean."""
    l2: Positive | Literal["auto"] = 1024.0
    """λ of the ridge regression; `auto` chooses it on the shots, by leaving one of every class out at a time."""


class NeighbourSettings(Settings):
    """kNN: the k nearest neighbours by cosine, their votes weighted by exp(cosine / temperature)."""

    name: ClassVar[str] = "knn"
    k: tuple[Count, ...] = Field(default=(20, 10, 100, 200), min_length=1)
    """Numbers of neighbours; block and pool are chosen by the accuracy of the first."""
    temperature: float = Field(default=0.07, gt=0)
    """The smaller, the more the nearest count."""


class ProbeSettings(Settings):
    """Linear probe: L2-regularised multinomial logistic regression on standardised features, to its optimum."""

    name: ClassVar[str] = "linear_probe"
    grid: tuple[Positive, ...] = Field(default=(1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3), min_length=1)
    """Values of C (the penalty is 1 / C). One is chosen on a held-out tenth of train that follows `labels.seed`."""
    depth_c: float = Field(default=0.01, gt=0)
    """The C of all fits that choose block and pool on the dev split: one fit a layer instead of one for every C. The
    chosen layer is then evaluated with the whole grid."""


class InTrainingSettings(Settings):
    """Evaluations of the encoder during pre-training, on images of the training split alone."""

    every: Duration = Duration(steps=0)
    """How often; the end of the run counts too. 0 means only at the end."""
    evaluators: tuple[Literal["few_shot", "knn"], ...] = ()
    """What is measured; empty measures nothing. It needs labels, which masked patch prediction does not see. In
    supervised pre-training the network learns these very labels: there the accuracies say how well it knows them."""
    images: int = Field(default=5000, ge=2)
    """Labelled training images that are used: a seeded choice, the same share of every class."""
    dev: float = Field(default=0.2, gt=0, lt=1)
    """Share of them that is predicted from the others."""
    shots: tuple[Count, ...] = Field(default=(5,), min_length=1)
    """Of `few_shot`: images of each class; the score is the mean over three draws."""
    k: tuple[Count, ...] = Field(default=(20,), min_length=1)
    """Of `knn`: numbers of neighbours."""
