"""Pushing the newest checkpoint during a run, by a process of its own: whatever becomes of it, the run continues."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token
from tqdm import tqdm

from mpp.hub.settings import HubSettings
from mpp.objective.base import Objective

LOG = "push.log"
"""The output of the pushes, in the run's folder."""
LOWEST = 19


def check_push(settings: HubSettings) -> None:
    """Refuse before anything is trained what could not be pushed.

    Raises:
        SettingError: if there is no token, the Hub is not to be asked, or the name or the licence is none of the Hub's.
    """
    if settings.push_to is None:
        return
    from mpp.hub.push import Target, check_target  # late: most runs push nothing

    if get_token() is None:
        message = "there is no token for the Hugging Face Hub: run 'hf auth login', set HF_TOKEN, or leave push_to out"
        raise settings.error(push_to=message)
    if constants.HF_HUB_OFFLINE:
        raise settings.error(push_to="HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or leave push_to out")
    with settings.blamed("push_to"):
        check_target(Target(settings.push_to), None)
    with settings.blamed("license"):
        check_target(Target(settings.push_to), settings.license)


class BackgroundPush:
    """Starts `python -m mpp.push` on a run now and then; at most one at a time.

    The process has the lowest priority, one thread and a session of its own: signals to the run do not reach it.

    Args:
        settings: where to push.
        run: the run's folder.
        steps: of the whole run, whose last checkpoint is pushed by `finish`.
    """

    def __init__(self, settings: HubSettings, run: Path, steps: int) -> None:
        assert settings.push_to is not None
        self.repo_id, self.run, self.steps = settings.push_to, run, steps
        self.command = [sys.executable, "-m", "mpp.push", str(run), settings.push_to]
        self.command += ["--private"] if settings.private else []
        if settings.reconstructions is not None:
            self.command += ["--reconstructions" if settings.reconstructions else "--no-reconstructions"]
        for name in ("branch", "license"):
            if value := getattr(settings, name):
                self.command += [f"--{name}", value]
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, step: int, objective: Objective) -> Iterator[tuple[str, Any]]:
        """Push the newest checkpoint, unless a push is under way; yields how the one before ended, for the journal."""
        if (ended := self._ended()) is not None:
            yield "hub/push_failed", ended
        if self._process is None and step < self.steps and (self.run / "checkpoints").is_dir():
            self._start()

    def finish(self) -> None:
        """Push the run's last checkpoint, and wait until it is there; or say what to do."""
        if self._process is not None:
            self._process.wait()
            self._ended()
        _say(f"pushing to {self.repo_id} …")
        self._start().wait()
        if self._ended() == 0:
            _say(self._output()[-1])

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (self.run / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(ProcessLookupError):  # it may be done already
            os.setpriority(os.PRIO_PROCESS, self._process.pid, LOWEST)
        return self._process

    def _output(self) -> list[str]:
        return (self.run / LOG).read_text(errors="replace").strip().splitlines() or ["no output"]

    def _ended(self) -> int | None:
        """0 if the last push arrived, 1 if it failed, with a message; None while it runs or if there is none."""
        if self._process is None or self._process.poll() is None:
            return None
        failed, self._process = int(self._process.returncode != 0), None
        if failed:
            output = self._output()
            reason = next((line for line in reversed(output) if line.startswith("error: ")), output[-1])
            _say(
                f"the push to {self.repo_id} failed: {reason.removeprefix('error: ')}\n"
                f"The run is untouched. All of it: {self.run / LOG}; "
                f"by hand: {shlex.join(['python', *self.command[1:]])}"
            )
        return failed


def _say(text: str) -> None:
    tqdm.write(text)  # above the progress bar, where there is one
