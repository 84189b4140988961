"""The long description of the package: the README without pictures and links that lead nowhere outside a checkout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def described(readme: str) -> str:
    """The README without relative pictures; of a relative link only its text stays."""
    text = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", "", readme, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


class ReadmeHook(MetadataHookInterface):
    """Gives the built package its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme`."""
        text = described((Path(self.root) / "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
