"""Whether the Hugging Face Hub can be reached: asked once, where its libraries would try five times and say so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

from mpp.redact import reason_of

SECONDS = 10
"""The longest wait for an answer."""
SWITCH = "HF_HUB_OFFLINE"


@contextmanager
def hub_or_cache() -> Iterator[str | None]:
    """Read from the cache alone, without retries, if the Hub cannot be reached; yields why it cannot, or None."""
    reason = None if constants.HF_HUB_OFFLINE else _unreachable()
    configs = [module for name in ("datasets.config", "huggingface_hub.constants") if (module := sys.modules.get(name))]
    before = [getattr(module, SWITCH) for module in configs]
    try:
        if reason is not None:
            for module in configs:
                setattr(module, SWITCH, True)
        yield reason
    finally:
        for module, value in zip(configs, before, strict=True):
            setattr(module, SWITCH, value)


def _unreachable() -> str | None:
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # whatever the network and its library may raise
        return reason_of(error)
    return None
