"""The folder that is pushed: what may be in it, whose files they are, and that nothing local is in any of them."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token

from mpp.files import sha256, write_text
from mpp.redact import public_name

RECONSTRUCTIONS = "reconstructions.png"
"""A picture of held-out images, which not everybody may want to show."""
ALLOWED = (
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "objective.safetensors",
    "results.json",
    "metrics.jsonl",
    "loss.png",
    RECONSTRUCTIONS,
)
"""What is pushed, and nothing else."""
WRITTEN = ".mpp-staged.json"
"""The digest of each file that was written, by its name, null while it is being written; it is not pushed."""
NOBODY = ("root", "user", "admin", "ubuntu", "localhost")
"""Names that tell nothing about anybody."""


@dataclass(frozen=True)
class Staged:
    """A folder that is ready to be pushed."""

    folder: Path
    step: int
    kind: str
    """`Encoder` or `Classifier`."""
    left_out: int = 0
    """Evaluations of the run that are of other weights or settings, and not in the card."""

    kept_back: bool = False
    """Whether the run has a picture of reconstructions that is not in it."""

    @property
    def files(self) -> list[Path]:
        """What is in it, in the order of the list."""
        return [self.folder / name for name in ALLOWED if (self.folder / name).is_file()]


def clear(folder: Path) -> None:
    """Make an empty folder, or remove from an earlier one the files that were staged there and are unchanged.

    Raises:
        ValueError: if the folder holds anything else, which is left as it is.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose an empty folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    try:
        written: dict[str, str | None] = json.loads((folder / WRITTEN).read_text(encoding="utf-8")) if names else {}
    except (OSError, ValueError):
        written = {}
    for name in (name for name in names if name != WRITTEN):
        path = folder / name
        if not path.is_file() or name not in written:
            raise ValueError(f"{folder} holds other things, e.g. {name}; choose an empty folder")
        if written[name] not in (None, sha256(path)):
            raise ValueError(f"{path} was changed after it was staged; move it away, or choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / WRITTEN, json.dumps(dict.fromkeys(ALLOWED)) + "\n")  # a kill leaves files of ours
    for name in (name for name in names if name != WRITTEN):
        (folder / name).unlink()


def remember(staged: Staged) -> None:
    """Write down what was staged, so that `clear` knows it again."""
    digests = {path.name: sha256(path) for path in staged.files}
    write_text(staged.folder / WRITTEN, json.dumps(digests, indent=2) + "\n")


def shown(source: str, *, local: bool) -> str:
    """A data set or encoder as strangers may read it: no folders of this machine, and no names of it or of its user.

    An id on the Hub is public already.
    """
    name = public_name(source, local=local)
    if "/" in name:
        return name
    known = {socket.gethostname(), os.environ.get("HOSTNAME", ""), getpass.getuser()}
    words = [re.escape(word) for word in sorted(known) if len(word) > 3 and word not in NOBODY]
    return re.sub(rf"(?<![A-Za-z0-9])({'|'.join(words)})(?![A-Za-z0-9])", "…", name) if words else name


def check_nothing_local(staged: Staged, run: Path) -> None:
    """Look for this machine's names, paths and secrets in every byte that would leave it.

    Raises:
        RuntimeError: naming the file, and the kind of thing that was found.
    """
    names = {"the home folder": str(Path.home()), "the run's folder": str(run.resolve())}
    secrets = {f"the environment variable {name}": value for name, value in os.environ.items()
               if re.search(r"TOKEN|SECRET|PASSWORD|KEY", name) and len(value) > 7}  # fmt: skip
    secrets["the token for the Hugging Face Hub"] = get_token() or ""
    for path in staged.files:
        content = path.read_bytes()
        for what, text in (names | secrets).items():
            if len(text) > 3 and text.encode() in content:
                raise RuntimeError(f"{path} would publish {what}; nothing was pushed")
