"""Several processes of one command on this machine: `mpp pretrain RECIPE --processes 2`.

`accelerate launch` does the same for several machines. Here a Ctrl-C ends without a traceback of the launcher, and
nothing has to be said about mixed precision or the number of machines.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

LAUNCHED = "ACCELERATE_MIXED_PRECISION"
"""Set in the environment of every process by `accelerate launch` and by `launch`, and by nothing else."""
POLL = 0.05
"""Seconds between two looks at the processes."""
INTERRUPTS = 3
"""A Ctrl-C this many times over stops at once, without saving."""
GRACE = 30.0
"""Seconds that the others have to end after one has failed."""


def launch(module: str, arguments: list[str], processes: int) -> int:
    """Run `python -m MODULE ARGUMENTS` in several processes that train together; return the exit code.

    Signals are passed to all of them: each finishes its step, and one saves. Where one fails, the others are ended.

    Raises:
        ValueError: if there are fewer GPUs than processes.
    """
    gpus = _gpus()
    if 0 < gpus < processes:
        raise ValueError(f"--processes {processes}, but this machine has {gpus} GPUs; give {gpus}, or hide the GPUs "
                         "with CUDA_VISIBLE_DEVICES= to train on CPUs")  # fmt: skip
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        LAUNCHED: "no",  # the recipe decides
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # as `accelerate launch`; the run sets its own
    }
    if not gpus:
        shared["ACCELERATE_USE_CPU"] = "true"
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for child in children:  # a SIGINT during an import would leave a traceback of C++
            child.send_signal(signal.SIGTERM if len(asked) < INTERRUPTS else signal.SIGKILL)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    for rank in range(processes):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", module, *arguments]
        children.append(subprocess.Popen(command, env=environment, process_group=0))  # signals come through `stop`
    code = _wait(children)
    return 128 + asked[0] if asked and code else code


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    """The exit code: 0 if all processes end well, else that of the first that did not; it gives the others time."""
    failed, deadline = 0, float("inf")
    while any(child.poll() is None for child in children):
        if not failed and (failed := next((child.returncode for child in children if child.returncode), 0)):
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(POLL)
    code = failed or next((child.returncode for child in children if child.returncode), 0)
    return 128 - code if code < 0 else code  # a shell's number for a process that a signal ended


def _gpus() -> int:
    import torch  # late: it takes a second

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
