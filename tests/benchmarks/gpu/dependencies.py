"""Which distributions are missing or too old here, and how to bring them. Standard library only."""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
FOR_TESTS = ("pytest", "scikit-learn", "scipy")
"""What tests/test_cuda.py needs besides."""
COME_WITH_CUDA = ("torch", "torchvision")
"""Too large to be carried, and built for one driver."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
"""pip takes these by name only."""
ON_TOP_OF_TORCH = ("accelerate", "timm")
"""pip would download torch with them."""


class Missing(NamedTuple):
    """A requirement that is not met."""

    name: str
    needed: str
    found: str | None

    def __str__(self) -> str:
        return f"{self.name}{self.needed} ({f'found {self.found}' if self.found else 'not installed'})"


def missing() -> list[Missing]:
    """The dependencies of the package that are not met."""
    return _unmet(_project()["project"]["dependencies"])


def missing_for_tests() -> list[Missing]:
    """Those of the tests that are not met."""
    wanted = [r for r in _project()["dependency-groups"]["dev"] if _split(r)[0] in FOR_TESTS]
    return _unmet(wanted)


def advice(lacking: list[Missing]) -> str:
    """What is missing, and the commands that bring it."""
    lines = ["missing: " + ", ".join(map(str, lacking))]
    carried = [m for m in lacking if m.name not in COME_WITH_CUDA]
    if fixed := [m.name for m in lacking if m.name in COME_WITH_CUDA]:
        lines.append(f"{' and '.join(fixed)} cannot be carried: choose a machine or an image that has them")
    tags = "".join(f" --platform {tag}_{platform.machine()}" for tag in PLATFORMS)
    python = ".".join(platform.python_version_tuple()[:2])
    download = f"pip download --only-binary=:all: --implementation cp --python-version {python}{tags}"
    plain = [f"'{m.name}{m.needed}'" for m in carried if m.name not in ON_TOP_OF_TORCH]
    alone = [f"'{m.name}{m.needed}'" for m in carried if m.name in ON_TOP_OF_TORCH]
    if carried:
        lines.append("where there is a network:")
        lines += [f"  {download} -d FOLDER {' '.join(plain)}"] if plain else []
        lines += [f"  {download} --no-deps -d FOLDER {' '.join(alone)}"] if alone else []
        lines.append("here:")
        lines.append(f"  {sys.executable} -m pip install --no-index --find-links FOLDER {' '.join(plain + alone)}")
    return "\n".join(lines)


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _unmet(requirements: list[str]) -> list[Missing]:
    unmet = []
    for requirement in requirements:
        name, needed = _split(requirement)
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        if found is None or _numbers(found) < _numbers(needed):
            unmet.append(Missing(name, needed, found))
    return unmet


def _split(requirement: str) -> tuple[str, str]:
    """`pyright[nodejs]>=1.1` → `pyright`, `>=1.1`."""
    match = re.fullmatch(r"([\w.-]+)(?:\[.*\])?(.*)", requirement)
    assert match is not None, requirement
    return match[1], match[2]


def _numbers(version: str) -> tuple[int, ...]:
    """`>=1.2.3` or `1.2.3+cu130` → (1, 2, 3)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
