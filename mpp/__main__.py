"""`mpp COMMAND …`, the same as `python -m mpp.COMMAND …`, and a list of the recipes that ship with the package."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module

import mpp
from mpp.extras import DISTRIBUTION

COMMANDS = {
    "recipes": "list the recipes that ship with the package, or print one",
    "pretrain": "pre-train an encoder by masked patch prediction or classification",
    "finetune": "train a classifier from an encoder, or from scratch",
    "evaluate": "few-shot, nearest neighbours and linear probe on frozen features",
    "report": "one page of a run: curves, reconstructions, results, speed, recipe",
    "embed": "the features of your images as .npy and Parquet",
    "predict": "classes of your images by a fine-tuned network, as .npy and Parquet",
    "gap": "a study: masked patch prediction, supervised and no pre-training",
    "push": "publish an encoder on the Hugging Face Hub",
    "benchmark": "the speed of a recipe on this machine",
    "recipe": "show a recipe with every setting, or the JSON Schema of recipes",
}
"""What each command does; `mpp.NAME` is its module."""
USAGE = """usage: mpp COMMAND [arguments]
       mpp COMMAND --help
       mpp --version

Pre-train Vision Transformers without labels by masked patch prediction.

{commands}

A first run:  mpp pretrain mean_color output_dir=runs/first
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 2 if there is none of that name."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help", "help", ""):
        print(USAGE.format(commands="\n".join(f"  {each:10} {does}" for each, does in COMMANDS.items())), end="")
        return 0 if name else 2
    if name in ("-V", "--version"):
        print(f"mpp {mpp.__version__} ({DISTRIBUTION})")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: mpp has no command {name}; {advice}", file=sys.stderr)
        return 2
    module = "mpp.recipe.__main__" if name == "recipe" else f"mpp.{name}"
    return import_module(module).main(rest)


if __name__ == "__main__":
    sys.exit(main())
