"""Start the package's commands as processes of their own, without importing torch again for each.

A server process imports everything once and then forks for every command: each is a real process with a real
exit code, that can really be killed, and is up in a fraction of a second. The server itself never computes, so
that no thread pool is lost in the fork.

Protocol, over the server's standard streams: a line of JSON `{"module", "arguments", "output", "cwd", "env"}` in,
the child's process id out.

A study starts processes itself, with `sys.executable -m …`. For its sake there is `python` beside the outputs: an
executable that takes the same arguments, has the server fork the command, and stands for it: signals go on to it, its
exit code comes back, and neither outlives the other.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAND_IN = """\
#!{python} -IS
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = dict(module=sys.argv[2], arguments=sys.argv[3:], cwd=os.getcwd(), env=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
pid = int(server.recv(16))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = server.recv(16)
if not code:  # ended by a signal
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code))
"""


def serve(address: str) -> None:
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_svg  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401

    import mpp.commands.benchmark
    import mpp.commands.evaluate
    import mpp.commands.finetune
    import mpp.commands.pretrain
    import mpp.study.report.figures
    import mpp.study.run  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children vanish when they have really ended
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            ready, _, _ = select.select([sys.stdin, listener], [], [])
            if listener in ready:
                _fork_for(listener.accept()[0])
            if sys.stdin in ready:
                line = sys.stdin.readline()  # the next one is sent when this one is answered
                if not line:
                    os._exit(0)  # what libraries do at an exit may wait for children, which vanish here
                request: dict[str, Any] = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become(request)
                print(pid, flush=True)


def _fork_for(stand_in: socket.socket) -> None:
    """Fork the command that a stand-in asks for."""
    message, streams, _, _ = socket.recv_fds(stand_in, 2**16, 2)
    pid = os.fork()
    if pid:
        stand_in.send(str(pid).encode())
        stand_in.close()
        for stream in streams:
            os.close(stream)
        return
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream, number)

    def follow() -> None:
        stand_in.recv(1)  # which comes to an end when the stand-in does
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    _run(json.loads(message), lambda code: stand_in.send(str(code).encode()))


def _become(request: dict[str, Any]) -> None:
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if request["module"] == "mpp.gap":
        sys.executable = request["python"]
    # The server cannot wait for a grandchild of the tests: the code is left in a file.
    _run(request, lambda code: Path(request["code"]).write_text(str(code)))


def _run(request: dict[str, Any], leave: Callable[[int], Any]) -> None:
    """Run a command in this process, leave its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
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
        leave(code)
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
        except (FileNotFoundError, ProcessLookupError):  # it may end between the opening and the reading
            return False
        return state != "Z"

    @property
    def code(self) -> int | None:
        """Its exit code; None if it runs, or was killed before it had one."""
        path = Path(f"{self.output}.code")
        return int(path.read_text()) if path.exists() and path.read_text() else None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 600) -> int | None:
        end = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no end after {seconds} s:\n{self.text}")
            time.sleep(0.005)
        return self.code


class ForkServer:
    """Starts commands; one for the whole test session.

    Args:
        folder: for what they say.
        imports: further modules that are imported once for all.
        env: the whole environment; None takes this process's. What a library reads when it is imported has to be here.
    """

    def __init__(self, folder: Path, imports: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.folder, self.count = folder, 0
        self._one_at_a_time = threading.Lock()  # question and answer share two pipes
        address = str(folder / "socket")
        self.python = folder / "python"
        self.python.write_text(STAND_IN.format(python=sys.executable, address=address))
        self.python.chmod(0o755)
        code = "".join(f"import {module}; " for module in imports)
        code += f"from tests.support.forkserver import serve; serve({address!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=Path(__file__).parents[2],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self, module: str, *arguments: object, cwd: Path | None = None, terminal: str | None = None, **env: str
    ) -> Command:
        """Start a command; what it says goes to a file, or to a terminal."""
        with self._one_at_a_time:
            self.count += 1
            output = self.folder / f"command-{self.count}.txt"
            request = {
                "module": module,
                "arguments": [str(argument) for argument in arguments],
                "output": terminal or str(output),
                "code": f"{output}.code",
                "cwd": str(cwd or Path.cwd()),
                "env": env,
                "python": str(self.python),
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
