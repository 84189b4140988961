"""Pre-training in which one process of two takes longer over everything that is not a step."""

from __future__ import annotations

import os
import time
from typing import Any

import mpp.pretrain
from mpp.training import trainer

SECONDS = 1.5


def main(arguments: list[str]) -> int:
    original = trainer._run_callbacks

    def late(*given: Any) -> dict[str, Any]:
        values = original(*given)
        if os.environ["RANK"] == "1":
            time.sleep(SECONDS)
        return values

    trainer._run_callbacks = late
    return mpp.pretrain.main(arguments)
