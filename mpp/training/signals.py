"""Requests to stop: a signal, or the death of the launcher."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from mpp.training.distributed import LAUNCHED

STARTED_BY = "MPP_STARTED_BY"
"""Set in the environment of processes that a command of this package starts: they end when it does."""
INTERRUPTS = 3
"""So many times Ctrl-C stops at once, without saving."""


class StopRequest:
    """Remembers a request to stop; the trainer checks it between steps.

    `kill PID` and Ctrl-C often reach the launcher only, or the launcher and all processes. A process of a launcher
    takes the launcher's death as a SIGTERM of its own.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._interrupts = 0
        self._launcher = os.getppid() if LAUNCHED in os.environ or STARTED_BY in os.environ else None

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def forget(self) -> None:
        """Restore the default handlers of SIGTERM and SIGINT, for work that has nothing to lose."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def asked(self) -> int | None:
        """The signal that asked for a stop, if any did."""
        if self.signal is None and self._launcher is not None and os.getppid() != self._launcher:
            self.signal = signal.SIGTERM
        return self.signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts >= INTERRUPTS:
                sys.exit(128 + number)
        if self.signal is None:
            self.signal = number


def exit_code(number: int) -> int:
    """A shell's exit code of a program that this signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + number
