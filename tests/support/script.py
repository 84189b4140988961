"""A script as a command: `tests.support.script FILE`."""

from __future__ import annotations

import runpy


def main(arguments: list[str]) -> int:
    runpy.run_path(arguments[0], run_name="__main__")
    return 0
