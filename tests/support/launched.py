"""`accelerate launch` as it is, whose process is forked like all others here: `tests.support.launched ARGUMENTS…`."""

from __future__ import annotations

import sys

from accelerate.commands import launch


def main(arguments: list[str]) -> int:
    sys.argv[1:] = arguments
    launch.main()
    return 0
