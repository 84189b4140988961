"""Progress bars: on a terminal, and only for what takes a while."""

from __future__ import annotations

import sys

DELAY = 3.0
"""Seconds after which work shows a bar."""


def quiet() -> bool:
    """Whether bars are left out: where stderr is no terminal."""
    return not sys.stderr.isatty()
