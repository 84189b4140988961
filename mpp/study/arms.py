"""What an arm of a study is: where it starts, how it pre-trains, what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from mpp.evaluation.settings import CONTROLS
from mpp.objective.settings import ObjectiveSettings
from mpp.settings import Settings
from mpp.training.settings import OptimizerSettings

Role = Literal["control", "random", "scratch", "pretrained", "self-supervised", "supervised"]
"""What an arm is compared as."""


class Arm(Settings):
    """One way to train an encoder, compared with the others of a study."""

    title: str = ""
    """Its name in tables and figures; empty takes the arm's own."""

    start: str = Field(default="random", min_length=1)
    """`random`: random weights. Otherwise an `encoder.source` (a run, a folder, `timm:NAME`), or one of the controls
    `raw_pixels` and `patch_colors`, which are not trained."""

    objective: ObjectiveSettings | None = None
    """What it pre-trains with on the upstream images; null does not pre-train."""

    optimizer: dict[str, Any] = {}
    """Settings of `pretraining.optimizer` that differ for this arm, e.g. `{lr: 3.0e-3}`."""

    budget: Literal["finetuning", "total"] = "finetuning"
    """How long it is fine-tuned: as long as every arm, or on as many images as pre-training and fine-tuning have
    together (and its frozen features are not evaluated)."""

    @model_validator(mode="after")
    def _is_possible(self) -> Arm:
        self.optimizer_of(OptimizerSettings(weight_decay=0.0))
        if self.objective is not None and (self.budget == "total" or self.start in CONTROLS):
            with_what = "budget: total" if self.budget == "total" else f"start: {self.start}"
            raise ValueError(f"an arm with {with_what} does not pre-train; leave objective out")
        return self

    def optimizer_of(self, study: OptimizerSettings) -> OptimizerSettings:
        """The study's optimiser with this arm's own settings.

        Raises:
            ValueError: for settings that an optimiser does not have, or that do not go with the study's.
        """
        try:
            both = OptimizerSettings.model_validate(study.model_dump() | self.optimizer)
        except ValidationError as error:
            found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ValueError(f"optimizer of an arm: {'; '.join(found)}") from error
        return study.model_copy(update={name: getattr(both, name) for name in self.optimizer})

    @property
    def role(self) -> Role:
        """What it is compared as; self-supervised objectives are those that need no labels."""
        if self.objective is not None:
            return "supervised" if self.objective.needs_labels else "self-supervised"
        if self.start in CONTROLS:
            return "control"
        if self.budget == "total":
            return "scratch"
        return "random" if self.start == "random" else "pretrained"


PRESETS: dict[str, Arm] = {
    name: Arm.model_validate(arm)
    for name, arm in yaml.safe_load((Path(__file__).parent / "arms.yaml").read_text(encoding="utf-8")).items()
}
"""The arms of the paper and the controls."""
