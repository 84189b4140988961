"""What pages of the site are made of besides their text."""

from __future__ import annotations

from typing import Any

from mpp.recipe.shipped import shipped_recipes, title

RECIPES = "<!-- recipes -->"
"""Replaced by a table of all recipes."""


def on_page_markdown(markdown: str, **others: Any) -> str:
    """The page with its tables filled in."""
    return markdown.replace(RECIPES, _recipes())


def _recipes() -> str:
    rows = [f"| `{name}` | {title(path)} |" for name, path in shipped_recipes().items()]
    return "\n".join(["| recipe | what it is |", "|---|---|", *rows])
