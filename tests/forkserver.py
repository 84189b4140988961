"""Start the package's commands as processes of their own, without importing torch again for each.

A server process imports everything once and then forks for every command: each is a real process with a real
exit code, that can really be killed, and is up in a fraction of a second. The server itself never computes, so
that no thread pool is lost in the fork.

Protocol, over the server's standard streams: a line of JSON `{"module", "arguments", "output", "cwd", "env"}` in,
the child's process id out.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def serve() -> None:
    import mpp.pretraining  # noqa: F401 - everything heavy, once

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children vanish when they have really ended
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(pid, flush=True)


def _become(request: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    code = 1
    try:
        code = importlib.import_module(request["module"]).main(request["arguments"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The server cannot wait for a grandchild of the tests: the code is left beside the output.
        Path(request["output"] + ".code").write_text(str(code))
        os._exit(code)


@dataclass
class Command:
    """A command that runs, or ran."""

    pid: int
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    @property
    def alive(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"

    @property
    def code(self) -> int | None:
        """Its exit code; None if it runs, or was killed before it had one."""
        path = Path(f"{self.output}.code")
        return int(path.read_text()) if path.exists() and path.read_text() else None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 180) -> int | None:
        end = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no end after {seconds} s:\n{self.text}")
            time.sleep(0.005)
        return self.code


class ForkServer:
    """Starts commands; one for the whole test session."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._one_at_a_time = threading.Lock()  # question and answer share two pipes
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", "from tests.forkserver import serve; serve()"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, module: str, *arguments: object, cwd: Path | None = None, **env: str) -> Command:
        with self._one_at_a_time:
            self.count += 1
            output = self.folder / f"command-{self.count}.txt"
            request = {
                "module": module,
                "arguments": [str(argument) for argument in arguments],
                "output": str(output),
                "cwd": str(cwd or Path.cwd()),
                "env": env,
            }
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return Command(int(self.process.stdout.readline()), output)

    def run(self, module: str, *arguments: object, cwd: Path | None = None, **env: str) -> Command:
        command = self.start(module, *arguments, cwd=cwd, **env)
        command.wait()
        return command

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
