"""What must not leave this machine: its folders' names and the token for the Hub."""

from __future__ import annotations

from pathlib import Path


def public_name(source: str, *, local: bool = False) -> str:
    """The name of a data set or encoder without its folders: `~/clients/scans` → `scans`, a Hub id unchanged.

    `local`: the source is known to be a path, even if it looks like a Hub id.
    """
    local = local or source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()
    return Path(source).name if local else source


def reason_of(error: Exception) -> str:
    """The first line of another library's error, or its class name. The token for the Hub is cut out."""
    from huggingface_hub import get_token

    if getattr(getattr(error, "response", None), "status_code", None) == 401:
        return "it is not there, is private, or the token is wrong or expired: see 'hf auth login' (401)"
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    if token := get_token():
        for form in (token, repr(token)[1:-1]):
            reason = reason.replace(form, "…")
    return reason
