"""What all commands share: arguments, error messages, exit codes."""

from __future__ import annotations

import errno
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpp.recipe import COMMANDS, RecipeError, help_text, open_recipe
from mpp.settings import SettingError

MISTAKE = 2
"""Exit code for what the user can correct."""
FAILED = 1
"""Exit code for a run that could not continue."""
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
TRACEBACK = "MPP_TRACEBACK"
"""Set this in the environment to see where an error comes from."""


def run_command(
    name: str, summary: str, work: Callable[[Any], int], arguments: list[str] | None = None, *, reads: str | None = None
) -> int:
    """Read `RECIPE [key=value …]`, run `work` on the recipe, and give the exit code.

    `reads` is the command whose recipes are read, where a command has none of its own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal lacks does not stop the run
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")
    if not arguments or {"-h", "--help"} & set(arguments):
        text = "\n\n".join(textwrap.fill(paragraph, 80) for paragraph in summary.strip().split("\n\n"))
        rest = help_text(COMMANDS[reads or name]) if arguments else "Every setting: --help\n"
        text += f"\n\nWith {TRACEBACK}=1 in the environment an error shows where it comes from."
        print(f"usage: python -m mpp.{name} RECIPE [key=value …]\n\n{text}\n\n{rest}", end="")
        return 0 if arguments else MISTAKE
    warnings.formatwarning = _format_warning

    def run() -> int:
        document, recipe = open_recipe(arguments[0], arguments[1:], reads or name)
        try:
            return work(recipe)
        except SettingError as error:
            raise RecipeError(document.problems_of(error), document.name) from error

    return guarded(run)


def guarded(work: Callable[[], int]) -> int:
    """Run `work`; report an error as one message on stderr, without a traceback."""
    try:
        return work()
    except ValueError as error:
        return _report(error, MISTAKE)
    except (RuntimeError, OSError) as error:
        return _report(error, FAILED)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """The text alone of a warning of this package, which is for the user; of any other also where it comes from."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _report(error: Exception, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    if isinstance(error, OSError) and error.errno in FULL:
        error = RuntimeError(
            f"{error.filename or 'a file'} could not be written: {error.strerror}. Earlier checkpoints are intact: "
            "make room, or raise the limit, and give the same command again"
        )
    # All processes find the same mistake of the user: one of them reports it.
    shared = code == MISTAKE and os.environ.get("RANK", "0") != "0"
    if not getattr(error, "reported_elsewhere", shared):
        print(f"error: {error}" if not isinstance(error, RecipeError) else error, file=sys.stderr, flush=True)
    return code
