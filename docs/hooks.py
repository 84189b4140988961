"""What pages of the site are made of besides their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from mpp.recipe.shipped import shipped_recipes, title

RECIPES = "<!-- recipes -->"
"""Replaced by a table of all recipes."""


PICTURES = ("reconstructions.png",)
"""Pictures of the README that pages show too."""


def on_files(files: Files, config: Any) -> Files:
    """The files of the site, with the pictures that lie beside the pages."""
    for name in PICTURES:
        files.append(File.generated(config, name, abs_src_path=str(Path(__file__).parent / name)))
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    """The page with its tables filled in."""
    return markdown.replace(RECIPES, _recipes())


def _recipes() -> str:
    rows = [f"| `{name}` | {title(path)} |" for name, path in shipped_recipes().items()]
    return "\n".join(["| recipe | what it is |", "|---|---|", *rows])
