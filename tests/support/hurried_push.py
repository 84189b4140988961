"""`mpp.push` as it is, but for its waits: they are written down in the file `WAITS`, and last a hundredth of a second.

With `XET` in the environment the files take the way that `huggingface_hub` chooses where `hf_xet` is installed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from huggingface_hub import constants

from mpp import push


def main(arguments: list[str]) -> int:
    constants.HF_HUB_DISABLE_XET = "XET" not in os.environ
    waits, wait = Path(os.environ["WAITS"]), time.sleep

    def hurry(seconds: float) -> None:
        with waits.open("a") as file:
            file.write(f"{seconds}\n")
        wait(min(seconds, 0.01))

    time.sleep = hurry
    return push.main(arguments)
