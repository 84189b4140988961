"""Pushing a staged folder: one commit, safe to repeat whatever went wrong."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from mpp.hub.stage import ALLOWED, Staged

ATTEMPTS = 4
"""How often a push is tried when the Hub is busy or breaks off."""
PAUSE = 2.0
"""Seconds before the second try, doubled before each further one."""
BUSY = (408, 429, 500, 502, 503, 504)
HTTP_ERROR: Any = HfHubHTTPError.__bases__[0]
"""Of the library that speaks HTTP for the Hub's, which has changed with its versions."""


@dataclass(frozen=True)
class Target:
    """Where to push."""

    repo_id: str
    private: bool = False
    branch: str | None = None
    tag: str | None = None


class PushError(RuntimeError):
    """A push that did not arrive. What is here is untouched, and the same command can be given again."""


def push(staged: Staged, target: Target, message: str, say: Callable[[str], None] = print) -> str:
    """Push in one commit; returns where it can be seen.

    The token comes from the environment or from `hf auth login`; it is never passed on here.

    Raises:
        PushError: saying what was wrong and what to do.
    """
    api = HfApi(library_name="mpp")
    quiet = logging.getLogger("huggingface_hub")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # what it tries again by itself is not worth a wall of text
    try:
        return _push(api, staged, target, message, say)
    finally:
        quiet.setLevel(level)


def check_target(target: Target, licence: str | None) -> None:
    """Refuse before anything is staged what the Hub would refuse.

    Raises:
        ValueError: saying what is wrong with the name or the licence.
    """
    if target.repo_id.count("/") != 1:
        raise ValueError(f"{target.repo_id!r} is no name on the Hub; give USER/NAME")
    validate_repo_id(target.repo_id)
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ValueError(f"{licence!r} is no identifier of a licence; the Hub's are like apache-2.0, mit or cc-by-4.0")


def _push(api: HfApi, staged: Staged, target: Target, message: str, say: Callable[[str], None]) -> str:
    def check() -> None:
        ModelCard.load(staged.folder / "README.md").validate()  # else a refusal would leave an empty repository

    def create() -> None:
        api.create_repo(target.repo_id, private=target.private, exist_ok=True)
        if target.private and not api.model_info(target.repo_id).private:
            raise ValueError(
                f"{target.repo_id} exists and is public: make it private on the Hub, or leave --private out. "
                "Nothing was pushed."
            )
        if target.branch:
            api.create_branch(target.repo_id, branch=target.branch, exist_ok=True)

    _with_patience(check, lambda: False, target, say)
    _with_patience(create, lambda: False, target, say)
    revision = target.branch or "main"

    def upload() -> None:
        # Not upload_folder, which repeats the commit by itself where the answer is lost.
        there = {info.path for info in _there(api, list(ALLOWED), target.repo_id, revision)}
        staged_names = {path.name for path in staged.files}
        api.create_commit(
            target.repo_id,
            operations=[
                *(CommitOperationAdd(path.name, path) for path in staged.files),
                *(CommitOperationDelete(name) for name in sorted(there - staged_names)),
            ],
            commit_message=message,
            revision=target.branch,
        )

    # An answer that never came, or a 500, may hide a commit that was made: what lies there decides.
    if not _arrived(api, staged, target.repo_id, revision):
        _with_patience(upload, lambda: _arrived(api, staged, target.repo_id, revision), target, say)
    else:
        say(f"{target.repo_id} holds these very files already")
    if target.tag:
        _with_patience(lambda: _tag(api, target, revision), lambda: False, target, say)
    return f"{api.endpoint}/{target.repo_id}" + (f"/tree/{target.branch}" if target.branch else "")


def _with_patience(
    work: Callable[[], None], arrived: Callable[[], bool], target: Target, say: Callable[[str], None]
) -> None:
    """Do it; again after a pause where the Hub is busy; never again where it is already done."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            work()
            return
        except Exception as error:
            message, again = _explain(error, target)
            if again and arrived():
                return
            if not again or attempt == ATTEMPTS:
                raise PushError(message) from error
            pause = max(PAUSE * 2 ** (attempt - 1), _retry_after(error))
            say(f"{message.splitlines()[0]}; trying again in {pause:.0f} s")
            time.sleep(pause)


def _retry_after(error: Exception) -> float:
    """How long the Hub wishes to be left alone, in seconds; 0 if it does not say, ten minutes at most."""
    response = getattr(error, "response", None)
    wish = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(wish), 600.0) if wish.isdigit() else 0.0


def _explain(error: Exception, target: Target) -> tuple[str, bool]:
    """The error in words, without anything secret, and whether to try again."""
    repeat = "Nothing here was changed; give the same command again."
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):  # an upload's, which hides its reason
        return _explain(error.__cause__, target)
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token for the Hugging Face Hub: run 'hf auth login', or set HF_TOKEN. {repeat}", False
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to push", False
    if isinstance(error, UnicodeError):
        return (
            f"the token holds characters that no token has: set HF_TOKEN anew, or log in again. {repeat}",
            False,
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        elsewhere = error.response is not None and not str(error.response.url).startswith(HfApi().endpoint)
        if status in (400, 403) and elsewhere:  # where large files go to: its addresses are good for a while only
            return f"an upload address was refused ({status}), which happens when it ran out\n{repeat}", True
        if status in BUSY:
            return f"the Hub answered {status}\n{repeat}", True
        words = {
            401: "the Hub does not accept the token: it is missing, wrong or expired; run 'hf auth login', or set "
            "HF_TOKEN anew",
            403: f"the token has no right to write to {target.repo_id}: use one with write access, or another name",
            404: f"{target.repo_id} is not there, or not for this token",
        }
        reason = (error.server_message or "no reason given").splitlines()[0][:200]
        if status not in words:
            return f"the Hub refused: {reason} ({status}). Nothing here was changed.", False
        return f"{words[status]} ({status}). {repeat}", False
    if isinstance(error, (HTTP_ERROR, OSError)):
        return f"the Hub cannot be reached ({type(error).__name__})\n{repeat}", True
    if isinstance(error, ValueError):
        return f"{error}", False
    return f"the push failed: {type(error).__name__}\n{repeat}", False


def _tag(api: HfApi, target: Target, revision: str) -> None:
    """Tag what was pushed; an existing tag is not moved.

    Raises:
        ValueError: if it does.
    """
    assert target.tag is not None
    commit = api.model_info(target.repo_id, revision=revision).sha
    placed = {tag.name: tag.target_commit for tag in api.list_repo_refs(target.repo_id).tags}
    if placed.get(target.tag, commit) != commit:
        raise ValueError(
            f"the files were pushed, but the tag {target.tag} is at another commit, {placed[target.tag][:8]}: "
            "choose another name, or remove it on the Hub"
        )
    if target.tag not in placed:
        api.create_tag(target.repo_id, tag=target.tag, revision=revision)


def _there(api: HfApi, names: list[str], repo_id: str, revision: str) -> list[Any]:
    return api.get_paths_info(repo_id, names, revision=revision)


def _arrived(api: HfApi, staged: Staged, repo_id: str, revision: str) -> bool:
    """Whether what lies there is what is staged: every file, byte for byte by the Hub's own hashes, and no other."""
    try:
        found = {info.path: info for info in _there(api, list(ALLOWED), repo_id, revision)}
    except (HfHubHTTPError, EntryNotFoundError, RevisionNotFoundError, HTTP_ERROR, OSError):
        return False
    names = {path.name for path in staged.files}
    return names == set(found) and all(_same(path, found[path.name]) for path in staged.files)


def _same(path: Path, info: Any) -> bool:
    content = path.read_bytes()
    if getattr(info, "lfs", None):
        return info.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return info.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
