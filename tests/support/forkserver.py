"""The one way to run commands: as processes of their own, without importing torch again for each.

A server process imports everything once and then forks for every command: each is a real process with a real
exit code, that can really be killed, and is up in a fraction of a second. The server itself never computes, so
that no thread pool is lost in the fork. `in_turn` runs several commands in one such process, for those that nobody
kills; `launch` starts a new interpreter, as a user does, for the few that have to be cold.

Protocol, over the server's standard streams: a line of JSON `{"module", "arguments", "output", "cwd", "env"}` in,
the child's process id out.

Some commands start processes themselves, with `sys.executable -m …`. For their sake there is `python` beside the
outputs: an executable that takes the same arguments, has the server fork the command, and stands for it: signals go on
to it, its exit code comes back, and neither outlives the other.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import importlib
import itertools
import json
import os
import re
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

import psutil

PR_SET_PDEATHSIG = 1

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
    import mpp.hub.load
    import mpp.hub.push
    import mpp.hub.stage
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
    if request["module"] in ("mpp.gap", "mpp.__main__", "tests.support.launched") or "PUSHES" in request["env"]:
        sys.executable = request["python"]
    # The server cannot wait for a grandchild of the tests: the code is left in a file.
    _run(request, lambda code: Path(request["code"]).write_text(str(code)))


def _run(request: dict[str, Any], leave: Callable[[int], Any]) -> None:
    """Run a command in this process, leave its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":  # tests that were broken off leave no run behind
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    code = 1
    try:
        code = call(request["module"], request["arguments"])
    finally:
        leave(code)
        os._exit(code)


def call(module: str, arguments: list[str]) -> int:
    """The exit code of a module's `main`."""
    try:
        return importlib.import_module(module).main(arguments)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Commands in turn, all in this process; `arguments` names a file with a request for each."""
    for request in json.loads(Path(arguments[0]).read_text()):
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        Path(request["code"]).write_text(str(call(request["module"], request["arguments"])))
    return 0


@dataclass
class Command:
    """A command that runs, or ran."""

    pid: int
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

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

    def until(self, condition: Callable[[], Any], seconds: float = 400) -> None:
        """Wait for what has to come true while the command is running."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.alive, f"ended with {self.code}:\n{self.text}"
            assert time.monotonic() < end, f"hung:\n{self.text}"
            time.sleep(0.002)

    def group_is_gone(self, seconds: float = 60) -> bool:
        """Whether all that it started ends, too."""
        end = time.monotonic() + seconds
        while any(_in_group(process, self.pid) for process in psutil.process_iter()):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


class Launched(Command):
    """A command in an interpreter of its own; `code` is below zero where a signal ended it."""

    def __init__(self, arguments: Sequence[object], output: Path, cwd: Path, env: Mapping[str, str]) -> None:
        with output.open("wb") as file:
            self._popen = subprocess.Popen(
                [str(argument) for argument in arguments], stdout=file, stderr=subprocess.STDOUT, cwd=cwd, env=env,
                start_new_session=True,
            )  # fmt: skip
        super().__init__(self._popen.pid, output)

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def code(self) -> int | None:
        return self._popen.poll()


class ForkServer:
    """Starts commands; one for the whole test session.

    Args:
        folder: for what they say.
        imports: further modules that are imported once for all.
        env: the whole environment; None takes this process's. What a library reads when it is imported has to be here.
    """

    def __init__(self, folder: Path, imports: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.folder, self._count = folder, itertools.count()
        self.env = dict(os.environ if env is None else env)
        self._further: Mapping[str, str] = {}
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
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def within(self, env: Mapping[str, str]) -> ForkServer:
        """The same server, whose commands have this in their environment."""
        other = copy.copy(self)
        other._further = {**self._further, **env}
        return other

    def start(
        self, module: str, *arguments: object, cwd: Path | None = None, terminal: str | None = None, **env: str
    ) -> Command:
        """Start a command; what it says goes to a file, or to a terminal."""
        with self._one_at_a_time:
            output = self._output()
            request = {
                "module": module,
                "arguments": [str(argument) for argument in arguments],
                "output": terminal or str(output),
                "code": f"{output}.code",
                "cwd": str(cwd or Path.cwd()),
                "env": {**self._further, **env},
                "python": str(self.python),
            }
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return Command(int(self.process.stdout.readline()), output)

    def run(self, module: str, *arguments: object, cwd: Path | None = None, **env: str) -> Command:
        """The same, to its end."""
        command = self.start(module, *arguments, cwd=cwd, **env)
        command.wait()
        return command

    def in_turn(
        self, commands: Mapping[str, tuple[str, Sequence[object]]], cwd: Path | None = None, **env: str
    ) -> dict[str, Command]:
        """Run `(module, arguments)` one after the other in one process: for what nobody kills."""
        outputs = {name: self._output() for name in commands}
        requests = [
            {"module": module, "arguments": [str(a) for a in arguments], "output": str(outputs[name]),
             "code": f"{outputs[name]}.code"}
            for name, (module, arguments) in commands.items()
        ]  # fmt: skip
        listed = self._output().with_suffix(".json")
        listed.write_text(json.dumps(requests))
        every = self.run("tests.support.forkserver", listed, cwd=cwd, **env)
        assert every.code == 0, every.text
        return {name: Command(every.pid, output) for name, output in outputs.items()}

    def launch(self, *arguments: object, cwd: Path, **env: str) -> Command:
        """Start a program as a user does, in an interpreter that has imported nothing yet."""
        return Launched(arguments, self._output(), cwd, self.env | {"PYTHONUNBUFFERED": "1"} | env)

    def _output(self) -> Path:
        return self.folder / f"command-{next(self._count)}.txt"

    def close(self) -> None:
        self.process.kill()  # it has nothing to put in order, and would take seconds for that
        self.process.wait(10)


def good(command: Command) -> Command:
    assert command.code == 0, command.text
    assert "Traceback" not in command.text
    return command


def refused(command: Command, *words: str, code: int = 2) -> None:
    """One clear message, of the user's mistake unless told otherwise: by itself, or at its place in the recipe."""
    assert command.code == code, f"{command.code}: {command.text}"
    assert "Traceback" not in command.text
    messages = re.findall(r"^(?:error|command line|(?:recipe \S+|\S+\.yaml)(?::\d+)?): ", command.text, re.MULTILINE)
    assert len(messages) == 1, command.text
    message = " ".join(command.text[command.text.index(messages[0]) :].split())
    for word in words:
        assert word in message, f"{word!r} is not in:\n{command.text}"


def start_two(commands: ForkServer, module: str, port: str, *arguments: object, **env: str) -> list[Command]:
    """One command in two processes, by rank."""
    places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places |= {"ACCELERATE_USE_CPU": "true"} | env
    return [commands.start(module, *arguments, RANK=rank, LOCAL_RANK=rank, **places) for rank in "01"]


def as_two(commands: ForkServer, module: str, port: str, *arguments: object, **env: str) -> list[Command]:
    """The same, to its end."""
    both = start_two(commands, module, port, *arguments, **env)
    for command in both:
        command.wait()
    return both
