"""The report of a gap study: one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_page(results: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` into the study's folder."""
    path = folder / "report.html"
    path.write_text("")
    return path
