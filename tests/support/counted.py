"""A command, and as its last line the networks that timm built for it: `tests.support.counted MODULE ARGUMENTS…`."""

from __future__ import annotations

import importlib
import json
from typing import Any

import timm
import torch


def main(arguments: list[str]) -> int:
    built = {"probes": 0, "networks": 0}
    create = timm.create_model

    def counted(*given: Any, **settings: Any) -> torch.nn.Module:
        model = create(*given, **settings)
        built["probes" if next(model.parameters()).is_meta else "networks"] += 1
        return model

    timm.create_model = counted
    module, *rest = arguments
    code = importlib.import_module(module).main(rest)
    timm.create_model = create
    print(json.dumps(built))
    return code
