"""`python -m mpp.recipe show RECIPE [key=value …]` and `python -m mpp.recipe schema [COMMAND]`."""

from __future__ import annotations

import argparse
import json
import sys

from mpp.recipe import COMMANDS, RecipeError, load_recipe, recipe_text


def main(arguments: list[str] | None = None) -> int:
    """Print what was asked for; 2 for a recipe that cannot be used."""
    parser = argparse.ArgumentParser(prog="mpp recipe", description="Look at recipes without running them.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="show | schema")
    show = actions.add_parser("show", help="print a recipe with every setting resolved")
    show.add_argument("recipe", metavar="RECIPE")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    schema = actions.add_parser("schema", help="print the JSON Schema of a command's recipes, for editors")
    schema.add_argument("command", nargs="?", default="pretrain", choices=list(COMMANDS), metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.action == "schema":
        print(json.dumps(COMMANDS[options.command].model_json_schema(), indent=2, ensure_ascii=False))
        return 0
    try:
        print(recipe_text(load_recipe(options.recipe, options.overrides)), end="")
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
