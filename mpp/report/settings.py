"""What the report parts of a recipe can say."""

from __future__ import annotations

from pydantic import Field

from mpp.settings import Duration, Settings


class ReconstructionSettings(Settings):
    """Pictures of what the model sees and predicts."""

    every: Duration = Duration(steps=1000)
    """How often; the end of the run counts too. 0 means only at the end."""

    images: int = Field(default=8, ge=0)
    """Rows of the picture: images of the held-out split; 0 draws none."""
