"""A command that SIGKILL ends at a chosen moment: `tests.support.killed EVENT PATTERN COUNT MODULE ARGUMENTS…`.

The moment is that before the COUNTth event of Python's audit log of the name EVENT, whose arguments match PATTERN, such
as the opening of a file or its renaming. Files that were written until then are there, all others are not.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from typing import Any


def main(arguments: list[str]) -> int:
    event, pattern, count, module, *rest = arguments
    left = int(count)

    def hook(name: str, about: tuple[Any, ...]) -> None:
        nonlocal left
        if name == event and re.search(pattern, " ".join(map(str, about))):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return importlib.import_module(module).main(rest)
