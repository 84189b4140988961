"""Recipes: YAML files and `key=value` overrides in, one tree of checked settings out; and everything about the tree.

    commands.py      the tree itself: which rooms a recipe has
    dialect.py       the YAML of recipes
    reading.py       file → values that remember their lines
    overriding.py    key=value → values
    checking.py      values → settings, or all mistakes at once
    problems.py      how a mistake is told
    schema.py        what may stand at a dotted path, in words
    help.py          every setting, for --help
    writing.py       settings → YAML; what differs between two

Nothing here imports torch: help and errors come at once.
"""

from mpp.recipe.dump import differences, recipe_text, write_recipe
from mpp.recipe.errors import RecipeError
from mpp.recipe.help import help_text
from mpp.recipe.load import load_recipe, load_settings, open_recipe, report
from mpp.recipe.tree import (
    COMMANDS,
    EvaluateRecipe,
    EvaluationPart,
    FinetuneRecipe,
    GapRecipe,
    PretrainRecipe,
    same_data,
)

__all__ = [
    "COMMANDS",
    "EvaluateRecipe",
    "EvaluationPart",
    "FinetuneRecipe",
    "GapRecipe",
    "PretrainRecipe",
    "RecipeError",
    "differences",
    "help_text",
    "load_recipe",
    "load_settings",
    "open_recipe",
    "recipe_text",
    "report",
    "same_data",
    "write_recipe",
]
