"""Modules as processes of their own, forked from one that has imported what takes long.

A fork saves seconds of imports for each process. CUDA does not survive a fork, so the parent never starts it; if some
import did, the child starts a new interpreter instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
POLL = 0.002


class Process:
    """A module that runs, or ran; all it prints goes to a file."""

    def __init__(self, pid: int, log: Path, *, leads: bool) -> None:
        self.pid, self.log, self._leads = pid, log, leads
        self._code: int | None = None

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def poll(self) -> int | None:
        """Its exit code, below zero where a signal ended it; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None, and it is killed, if it takes longer."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                return None
            time.sleep(POLL)
        return self._code

    def kill(self) -> None:
        """End it by SIGKILL, and all that it started if it leads a group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL) if self._leads else os.kill(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(POLL)

    def kill_rest(self) -> None:
        """End what a process that leads a group has left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def start(module: str, arguments: Sequence[object], log: Path, *, leads: bool = False, **env: str) -> Process:
    """Start `python -m MODULE ARGUMENTS`; `leads` puts it in a process group of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return Process(pid, log, leads=leads)
    try:
        _become(module, [str(argument) for argument in arguments], log, parent, env, leads=leads)
    finally:  # never back into the parent's code
        os._exit(1)


def _become(module: str, arguments: list[str], log: Path, parent: int, env: Mapping[str, str], *, leads: bool) -> None:
    if leads:
        os.setsid()
    if sys.platform == "linux":  # a parent that was killed leaves nothing behind
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # The parent's may be pytest's; a closed one must not take the file with it.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(env)
    if _cuda_has_started():
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    code = 1
    try:
        code = int(importlib.import_module(module).main(arguments) or 0)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _cuda_has_started() -> bool:
    """Whether the parent of this fork had started CUDA, which is of no use here then."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()
