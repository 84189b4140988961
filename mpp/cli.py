"""What all commands share: arguments, error messages, exit codes."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mpp.launch import launch
from mpp.memory import keep_freed_memory
from mpp.recipe import COMMANDS, RecipeError, help_text, open_recipe
from mpp.recipe.shipped import shipped_recipes
from mpp.run_folder import foreign_files, refuse_other_output
from mpp.settings import SettingError, Settings, together

OPTIONS = """RECIPE is a file, or one of the names that 'mpp recipes' lists; it may be left out
where one is called as the command.

"""
PROCESSES = "  --processes N   train in N processes on this machine, one a GPU, or all on CPUs\n"
QUIET = "  --quiet         print errors and warnings alone\n"
TRAINING = ("pretrain", "finetune")
"""Commands whose help offers `--processes`."""
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
    """Read `RECIPE [key=value …] [--processes N] [--quiet]`, run `work` on the recipe, and give the exit code.

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
        trains = name in TRAINING
        usage = f"usage: mpp {name} RECIPE [key=value …] {'[--processes N] ' * trains}[--quiet]"
        print(f"{usage}\n\n{text}\n\n{OPTIONS}{PROCESSES * trains}{QUIET}\n{rest}", end="")
        return 0 if arguments else MISTAKE
    warnings.formatwarning = _format_warning

    def run() -> int:
        (path, *overrides), processes, quiet = _options(arguments, name)
        if "=" in path and not Path(path).exists() and name in shipped_recipes():
            path, overrides = name, [path, *overrides]
        document, recipe = open_recipe(path, overrides, reads or name)
        if not quiet and os.environ.get("RANK", "0") == "0":
            print(*document.notes, sep="\n", end="\n" if document.notes else "", flush=True)
        try:
            if reads is None:
                check_output_dir(recipe)
            check_paths(recipe)
        except SettingError as error:
            raise RecipeError(document.problems_of(error), document.name) from error
        if processes > 1 and "WORLD_SIZE" not in os.environ:
            return launch(f"mpp.{name}", [path, *overrides, *(["--quiet"] if quiet else [])], processes)
        if quiet:
            os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
        keep_freed_memory()
        try:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if quiet else sys.stdout):
                return work(recipe)
        except SettingError as error:
            raise RecipeError(document.problems_of(error), document.name) from error

    return guarded(run)


def check_output_dir(recipe: Settings) -> None:
    """Refuse a folder with the output of another command before anything heavy is imported.

    Raises:
        SettingError: with what is in it.
    """
    folder, command = (getattr(recipe, name, None) for name in ("output_dir", "command"))
    if folder is not None and command is not None:
        try:
            refuse_other_output(Path(folder), command)
        except ValueError as error:
            raise recipe.error(output_dir=str(error)) from error
        if command in TRAINING and os.environ.get("RANK", "0") == "0" and (others := foreign_files(Path(folder))):
            listed = ", ".join(others[:4]) + ", …" * (len(others) > 4)
            print(f"warning: {folder} holds other files already ({listed}): they stay, beside those of the run",
                  file=sys.stderr)  # fmt: skip


def check_paths(recipe: Settings) -> None:
    """Refuse wrong paths before anything heavy is imported; a run that has begun may have lost them since.

    Raises:
        SettingError: with all complaints.
    """
    folder = getattr(recipe, "output_dir", None)
    if folder is None or not (Path(folder) / "recipe.yaml").is_file():
        together(*(section.check_paths for _, section in recipe if isinstance(section, Settings)))


def _options(arguments: list[str], name: str) -> tuple[list[str], int, bool]:
    """Recipe and overrides, the number of processes, and whether to be quiet.

    Raises:
        ValueError: for an unknown option, or no recipe.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--quiet", action="store_true")
    try:
        options, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(error) from error
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        name_given = unknown[0].lstrip("-").partition("=")[0]
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+|output_dir|encoder|seed", name_given):
            _, equals, value = unknown[0].partition("=")
            following = rest[rest.index(unknown[0]) + 1 :]
            value = value if equals else following[0] if following else "…"
            raise ValueError(f"unknown option {unknown[0]}: settings have no dashes; write {name_given}={value}")
        there = "--processes N, " * (name in TRAINING) + "--quiet and --help"
        raise ValueError(f"unknown option {unknown[0]}; there are {there}")
    if options.processes < 1:
        raise ValueError(f"--processes {options.processes}: give 1 or more")
    if not rest:
        raise ValueError("no recipe; give a file, or one of the names that 'mpp recipes' lists")
    return rest, options.processes, options.quiet


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


def _mismatch() -> str:
    """What to do where torchvision cannot find its own operators."""
    torch, torchvision = (version(name) for name in ("torch", "torchvision"))
    return (f"torch {torch} and torchvision {torchvision} are not of one build: install both from one index, in one "
            "command")  # fmt: skip


def _report(error: Exception, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    if isinstance(error, OSError) and error.errno in FULL:
        error = RuntimeError(
            f"{error.filename or 'a file'} could not be written: {error.strerror}. Earlier checkpoints are intact: "
            "make room, or raise the limit, and give the same command again"
        )
    if "torchvision::" in str(error):
        error = RuntimeError(_mismatch())
    # All processes find the same mistake of the user: one of them reports it.
    shared = code == MISTAKE and os.environ.get("RANK", "0") != "0"
    if not getattr(error, "reported_elsewhere", shared):
        print(f"error: {error}" if not isinstance(error, RecipeError) else error, file=sys.stderr, flush=True)
    return code
