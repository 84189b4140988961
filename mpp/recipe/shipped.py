"""The recipes that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = (HERE / "recipes", HERE.parents[1] / "recipes")
"""In an installed package, and in a checkout."""


def shipped_recipes() -> dict[str, Path]:
    """The file of each recipe, by its name: `mean_color`, `cifar10/mean_color`."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe: a path as it is, or else a shipped recipe by its name."""
    path = Path(recipe)
    if path.exists() or path.suffix:
        return path
    return shipped_recipes().get(str(recipe), path)


def shipped_name(path: Path) -> str | None:
    """The shipped recipe that a path such as `recipes/mean_color.yaml` is meant for, None if there is none."""
    parts = path.with_suffix("").parts
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in shipped_recipes()), None)


def command_of(path: Path) -> str:
    """The command that a shipped recipe is for."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("command: ") for line in lines if line.startswith("command: "))


def title(path: Path) -> str:
    """What a recipe is for: its first line, a comment."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
