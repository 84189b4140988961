"""The interface of all objectives.

An objective is a settings class (in `settings.py`, without torch, so that help comes at once) whose `build` makes an
`Objective`. Nothing outside this room asks which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from mpp.encoder.backbone import Backbone
from mpp.objective.scores import Scores


class Sample(NamedTuple):
    """Images that baselines are counted or measured on."""

    batches: Iterable[tuple[Tensor, Tensor]]
    """uint8 pixels `(b, 3, h, w)` and int64 sample numbers `(b,)`; decoded only when they are iterated over."""
    labels: Tensor | None = None
    """int64 `(n,)`, of all images that may be counted."""


class Objective(nn.Module):
    """An encoder and what it is trained to do."""

    encoder: Backbone
    """The network that is pre-trained and published."""
    headline: ClassVar[str] = "loss"
    """The score that is compared with the baselines."""
    headline_title: ClassVar[str] = "loss"
    """The headline in words."""
    line: ClassVar[Mapping[str, str]] = {}
    """Formats of scores and baselines in a line of the terminal, in their order there."""

    def forward(self, pixels: Tensor, samples: Tensor | None = None, labels: Tensor | None = None) -> Any:
        """A named tuple of the `loss` of a batch, a float32 scalar, and whatever `scores` needs.

        Pixels are uint8 `(b, 3, h, w)`; labels int64 `(b,)`, if the objective needs them; samples int64 `(b,)` decide
        every random draw, and None draws from torch's generator. Where there are `draws`, the argument `draw` may give
        theirs for these samples.
        """
        raise NotImplementedError

    def draws(self) -> Callable[[Tensor], Tensor] | None:
        """A function of sample numbers, int64 `(b,)`, that the loader calls: what it draws, `forward` need not.

        It must not hold the weights, which loader processes would get a copy of. None where nothing is drawn.
        """
        return None

    def scores(self, prediction: Any, pixels: Tensor) -> Scores:
        """Sums over a batch, by name, from the output of `forward` and its pixels; `loss` is always among them."""
        raise NotImplementedError

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """The means of the scores as the metrics log has them."""
        return means

    @property
    def unit(self) -> str:
        """The unit of the loss, e.g. nats; empty where it has no name."""
        return ""

    @property
    def words(self) -> dict[str, str]:
        """What the words in `line` mean, in their order there, for the start of a run."""
        return {}

    def baselines(self, train: Sample, validation: Sample) -> dict[str, float]:
        """The headline's value on `validation` for predictions that need no network, counted on `train`, by name."""
        return {}

    def picture(self, pixels: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Columns of a picture by title: float32 `(b, 3, h, w)` in [0, 1]; NaN where a pixel is hidden. May be empty.

        The first column is the images themselves.
        """
        return {}

    def marks(self, samples: Tensor) -> dict[str, Tensor]:
        """The patches to frame in the other columns, by what was done to them: bool `(b, rows, columns)`."""
        return {}

    def linear(self) -> tuple[Tensor, Tensor] | None:
        """A linear classifier on the pooled feature, weight `(classes, d)` and bias `(classes,)`; None without one."""
        return None

    def bare(self, batch_size: int) -> nn.Module | None:
        """The same loss by timm's model alone, to measure the overhead; None if there is none.

        Its `forward` takes nothing: random inputs are its buffers.
        """
        return None

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay: positions and tokens."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
