"""Pushing a staged folder: one commit, safe to repeat whatever went wrong."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from mpp.hub.folder import ALLOWED, Staged

T = TypeVar("T")
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
    """Push in one commit; return where it can be seen.

    The token comes from the environment or from `hf auth login`; it is never passed on here.

    Raises:
        PushError: with the reason and what to do.
    """
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # retries are reported by `say`, a line each
    try:
        return _push(HfApi(library_name="mpp"), staged, target, message, say)
    finally:
        log.setLevel(level)


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
    repo_id, revision = target.repo_id, target.branch or "main"

    def create() -> str | None:
        ModelCard.load(staged.folder / "README.md").validate()  # first: a refusal leaves no empty repository behind
        api.create_repo(repo_id, private=target.private, exist_ok=True)
        if target.private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public: make it private on the Hub, or leave --private out. "
                "Nothing was pushed."
            )
        if target.branch:
            api.create_branch(repo_id, branch=target.branch, exist_ok=True)
        return api.model_info(repo_id, revision=revision).sha

    def upload() -> str:
        # An answer that never came may hide a commit that was made. The library leaves unchanged files out of a
        # commit, and makes none of nothing: so this can be repeated. Not upload_folder, which repeats blindly.
        there = {info.path for info in api.get_paths_info(repo_id, list(ALLOWED), revision=revision)}
        added = [CommitOperationAdd(path.name, path) for path in staged.files]
        removed = [CommitOperationDelete(name) for name in sorted(there - {path.name for path in staged.files})]
        return api.create_commit(
            repo_id, operations=[*added, *removed], commit_message=message, revision=target.branch
        ).oid

    before = _retrying(create, target, say)
    if _retrying(upload, target, say) == before:
        say(f"{repo_id} holds these very files already")
    if target.tag:
        _retrying(lambda: _tag(api, target, revision), target, say)
    return f"{api.endpoint}/{repo_id}" + (f"/tree/{target.branch}" if target.branch else "")


def _retrying(work: Callable[[], T], target: Target, say: Callable[[str], None]) -> T:
    """Do the work; repeat it after a pause while the Hub is busy."""
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except Exception as error:
            message, again = _explain(error, target)
            if not again or attempt == ATTEMPTS - 1:
                raise PushError(message) from error
            pause = max(PAUSE * 2**attempt, _retry_after(error))
            say(f"{message.splitlines()[0]}; trying again in {pause:.0f} s")
            time.sleep(pause)
    raise AssertionError


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
