"""A command, and as its last line what PyTorch did for it: `tests.support.spied MODULE ARGUMENTS…`."""

from __future__ import annotations

import importlib
import json

import torch
from timm.models.vision_transformer import Block
from torch._dynamo.utils import counters
from torch.nn.modules.module import register_module_forward_pre_hook


def main(arguments: list[str]) -> int:
    blocks = 0

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Before, and not after: a block that is gone through again ends as soon as it has what is needed."""
        nonlocal blocks
        if isinstance(module, Block) and module.training and not torch.compiler.is_compiling():
            blocks += not args[0].is_meta

    hook = register_module_forward_pre_hook(count)
    module, *rest = arguments
    code = importlib.import_module(module).main(rest)
    hook.remove()
    breaks = sum(counters["graph_break"].values())
    print(json.dumps({"blocks": blocks, "graphs": counters["stats"]["unique_graphs"], "breaks": breaks}))
    return code
