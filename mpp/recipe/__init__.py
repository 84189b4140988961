"""Recipes: YAML files and `key=value` overrides in, one tree of checked settings out; and everything about the tree.

    tree.py          the sections of each command's recipe
    yaml.py          the YAML of recipes
    parse.py         file → values that remember their lines
    overrides.py     key=value → values
    validate.py      values → settings, or all mistakes at once
    errors.py        the line of each setting; how a mistake is shown
    shipped.py       the recipes that ship with the package, by name
    shorter_run.py   warm-up and decay of a run that is shorter than its recipe's
    load.py          all of this together
    help.py          every setting, for --help
    dump.py          settings → YAML; the differences between two

Nothing here imports torch: help and errors take no time.
"""

from mpp.recipe.dump import differences, recipe_text, write_recipe
from mpp.recipe.errors import RecipeError
from mpp.recipe.help import help_text
from mpp.recipe.load import load_recipe, open_recipe
from mpp.recipe.tree import (
    COMMANDS,
    EmbedRecipe,
    EvaluateRecipe,
    EvaluationPart,
    FinetuneRecipe,
    GapRecipe,
    PredictRecipe,
    PretrainRecipe,
    same_data,
)

__all__ = [
    "COMMANDS",
    "EmbedRecipe",
    "EvaluateRecipe",
    "EvaluationPart",
    "FinetuneRecipe",
    "GapRecipe",
    "PredictRecipe",
    "PretrainRecipe",
    "RecipeError",
    "differences",
    "help_text",
    "load_recipe",
    "open_recipe",
    "recipe_text",
    "same_data",
    "write_recipe",
]
