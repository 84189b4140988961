"""What the `hub:` part of a recipe can say."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mpp.settings import Duration, Settings


class HubSettings(Settings):
    """Pushes to the Hugging Face Hub while the run continues, by a process of its own that never holds it up."""

    push_to: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """`USER/NAME`: the newest checkpoint goes there, as `python -m mpp.push` would push it. null pushes nothing. The
    token comes from 'hf auth login' or HF_TOKEN alone."""

    every: Duration = Duration(steps=0)
    """How often; the end of the run counts too. 0 means only at the end. A push that is still under way is not
    joined by another."""

    private: bool = True
    """Create the repository as a private one."""

    branch: str | None = None
    """Push to this branch instead of main."""

    reconstructions: bool | None = None
    """Push `reconstructions.png`, which shows held-out images of the data. null leaves it out where `data.source` is a
    file or folder of this machine."""

    license: str | None = None
    """Identifier of the licence you give it, e.g. `apache-2.0`."""
