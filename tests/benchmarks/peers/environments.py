"""An environment a library, made by uv; nothing is added to that of the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.peers.contenders import LIBRARIES

ROOT = Path(__file__).parents[3]
LIMIT = 1800
"""Seconds that an installation may take."""
SHOWN = (
    "mpp",
    "torch",
    "timm",
    "transformers",
    "datasets",
    "vit-pytorch",
    "lightly",
    "lightning",
    "stable-pretraining",
)


class InstallationError(RuntimeError):
    """A library that cannot be installed, with the last lines of the installer."""


def make(library: str, cache: Path) -> Path:
    """The interpreter of a library's environment, which is made or brought up to date.

    Raises:
        InstallationError: if that fails.
    """
    folder = cache / "environments" / library
    python = folder / "bin" / "python"
    requirements = [part.format(root=ROOT) for part in LIBRARIES[library].requirements]
    if not python.exists():
        _uv("venv", "--quiet", "--python", sys.executable, str(folder))
    _uv("pip", "install", "--quiet", "--python", str(python), *requirements)
    return python


def versions(python: Path) -> dict[str, str]:
    """The versions in an environment of what matters here."""
    code = (
        "import json; from importlib.metadata import distributions as d; "
        "print(json.dumps({x.metadata['Name'].lower(): x.version for x in d()}))"
    )
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, str] = json.loads(run.stdout)
    found["mpp"] = found.pop("masked-patch-prediction", "")
    return {name: found[name] for name in SHOWN if found.get(name)}


def variables(cache: Path, threads: int) -> dict[str, str]:
    """The environment variables of every measured process: processors only, no network, caches of its own."""
    return {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(cache / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "LIGHTLY_DID_VERSION_CHECK": "True",
        "OMP_NUM_THREADS": str(threads),
        "SPT_CACHE_DIR": str(cache / "stable-pretraining"),
    }


def _uv(*arguments: str) -> None:
    try:
        run = subprocess.run(["uv", *arguments], capture_output=True, text=True, timeout=LIMIT, check=False)
    except FileNotFoundError as error:
        raise InstallationError("uv is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise InstallationError(f"not installed after {LIMIT} s") from error
    if run.returncode:
        raise InstallationError(" ".join(run.stderr.split())[-300:])
