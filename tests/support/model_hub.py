"""A server on the loopback that answers the Hub's calls: pushes, loads, and whatever can go wrong with them.

It knows repositories with their commits, branches and tags, files that come inline and files that come through LFS,
and tokens; a data set's repository is called `datasets/USER/NAME`. Like the Hub it makes a commit out of everything
that is sent to it as one, the same files again included.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER, EXPIRED = "hf_" + "w" * 34, "hf_" + "r" * 34, "hf_" + "x" * 34
"""Tokens of the user that owns every repository, of somebody else, and one that has run out."""
LFS_KINDS = (".safetensors", ".png", ".bin")


class StopError(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, error: str, kind: str = "", **further: str) -> None:
        super().__init__(error)
        self.code, self.error, self.kind, self.further = code, error, kind, further


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    message: str
    files: dict[str, bytes]
    large: frozenset[str]
    """The files that came through LFS."""


@dataclass
class Repo:
    """What was pushed."""

    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded through LFS, by SHA-256."""

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise StopError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(
        self,
        branch: str,
        message: str,
        files: dict[str, bytes],
        large: frozenset[str] = frozenset(),
        gone: frozenset[str] = frozenset(),
    ) -> Commit:
        before = self.at(branch) if branch in self.branches else Commit("", "", {}, frozenset())
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        changed = frozenset(files) | gone
        left = {name: content for name, content in before.files.items() if name not in gone}
        commit = Commit(oid, message, {**left, **files}, (before.large - changed) | large)
        self.commits.append(commit)
        self.branches[branch] = oid
        return commit

    @property
    def pushed(self) -> list[Commit]:
        """All commits but the one that the Hub makes when it creates a repository."""
        return self.commits[1:]


@dataclass
class Fault:
    """What goes wrong with the calls that match, so often.

    `after`: the work is done nevertheless. `cut`: the connection ends instead of an answer, in the middle of the body
    where one is sent and the work is not to be done.
    """

    call: str
    status: int = 500
    times: int = 10**6
    after: bool = False
    cut: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    error: str = "Internal Error - We're working hard to fix this as soon as possible!"


class Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that this server cut are no errors."""


class ModelHub:
    """The server.

    Attributes:
        endpoint: for `HF_ENDPOINT`.
        asked: the calls that came in, in order: `POST /api/repos/create`.
        faults: what is to go wrong.
        inline: whether no file goes through LFS.
        received: every byte that was sent here in a body, by call.
        tokens: every token that was shown, by call.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.received: list[tuple[str, bytes]] = []
        self.tokens: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.inline = False
        self._lock = threading.RLock()
        self._handler = _handler(self)
        self._server = Server(("127.0.0.1", 0), self._handler)
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ModelHub:
        self._serve()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _serve(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def forget(self) -> None:
        """What was asked so far, and the faults; the repositories stay."""
        self.asked.clear()
        self.received.clear()
        self.tokens.clear()
        self.faults.clear()
        self.inline = False

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Nobody listens at the port."""
        self._stop()
        try:
            yield
        finally:
            self._server = Server(("127.0.0.1", self.port), self._handler)
            self._serve()

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repo:
        """A repository, with some files beside the ones that the Hub puts there."""
        repo = self.repos[repo_id] = Repo(private)
        repo.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        if files:
            repo.add("main", "files", files, frozenset(name for name in files if name.endswith(LFS_KINDS)))
        return repo

    # Every answer, by call.

    def repo(self, repo_id: str, token: str, *, write: bool = False) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and token != WRITER):
            if not token:  # the Hub does not tell strangers what is there
                raise StopError(401, "Invalid username or password.")
            raise StopError(404, "Repository not found", "RepoNotFound")
        if write and token != WRITER:
            if not token:
                raise StopError(401, "Invalid username or password.")
            raise StopError(403, "Forbidden: you do not have the right to push to this repository")
        return repo

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes, token: str) -> Any:
        """The JSON of a call."""
        if token == EXPIRED:
            raise StopError(401, 'User Access Token "laptop" is expired')
        if (method, path) == ("POST", "/api/repos/create"):
            return self._create(json.loads(body), token)
        if (method, path) == ("POST", "/api/validate-yaml"):
            return {"errors": _wrong(yaml.safe_load(json.loads(body)["content"].split("---")[1])), "warnings": []}
        if (method, path) == ("GET", "/api/whoami-v2"):
            if not token:
                raise StopError(401, "Invalid username or password.")
            return {"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(match[1], self.repo(match[1], token, write=True), json.loads(body))
        if match := re.fullmatch(r"/lfs/([^/]+/[^/]+)/(\w+)", path):  # an address that is the right to write there
            if hashlib.sha256(body).hexdigest() != match[2]:
                raise StopError(400, "the content is not what was announced")
            self.repos[match[1]].large[match[2]] = body
            return {}
        if match := re.fullmatch(r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path):
            repo_id = (match[1] or "") + match[2]
            return self._about(method, repo_id, match[3] or "revision", match[4] or "main", query, body, token)
        raise StopError(404, f"no such call: {method} {path}")

    def _create(self, wanted: dict[str, Any], token: str) -> Any:
        if not token:
            raise StopError(401, "Invalid username or password.")
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        if token != WRITER:
            raise StopError(
                403, f'You don\'t have the rights to create a model under the namespace "{repo_id.split("/")[0]}"'
            )
        if repo_id in self.repos:
            raise StopError(409, "You already created this model repo", url=f"{self.endpoint}/{repo_id}")
        self.create(repo_id, private=wanted.get("visibility") == "private")
        return {"url": f"{self.endpoint}/{repo_id}"}

    def _batch(self, repo_id: str, repo: Repo, wanted: dict[str, Any]) -> Any:
        objects = []
        for thing in wanted["objects"]:
            entry: dict[str, Any] = {"oid": thing["oid"], "size": thing["size"]}
            if thing["oid"] not in repo.large:
                entry["actions"] = {"upload": {"href": f"{self.endpoint}/lfs/{repo_id}/{thing['oid']}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _about(
        self, method: str, repo_id: str, what: str, rest: str, query: dict[str, list[str]], body: bytes, token: str
    ) -> Any:
        if method == "GET":
            repo = self.repo(repo_id, token)
            if what == "refs":
                refs = {"branches": repo.branches, "tags": repo.tags}
                return {"converts": []} | {
                    kind: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in found.items()]
                    for kind, found in refs.items()
                }
            commit = repo.at(rest.split("/")[0] if what == "tree" else rest)
            if what == "tree":
                return [_entry(commit, name) for name in sorted(commit.files)]
            if what == "revision":
                return self._info(repo_id, repo, commit)
            if what == "commits":
                return [{"id": c.oid, "title": c.message} for c in reversed(repo.commits)]
        if method == "POST" and what == "paths-info":
            commit = self.repo(repo_id, token).at(rest)
            names = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            return [_entry(commit, name) for name in names if name in commit.files]
        repo = self.repo(repo_id, token, write=True)
        if what == "branch":
            if rest in repo.branches:
                raise StopError(409, "Reference already exists")
            repo.branches[rest] = repo.at(json.loads(body or b"{}").get("startingPoint", "main")).oid
        elif what == "tag":
            tag = json.loads(body)["tag"]
            if tag in repo.tags:
                raise StopError(409, f"Tag {tag} already exists")
            repo.tags[tag] = repo.at(rest).oid
        elif what == "preupload":
            commit = repo.at(rest)
            return {"files": [self._mode(commit, entry["path"]) for entry in json.loads(body)["files"]]}
        elif what == "commit":
            return self._commit(repo_id, repo, rest, body)
        else:
            raise StopError(404, f"no such call: {method} {what}")
        return {}

    def _mode(self, commit: Commit, name: str) -> dict[str, Any]:
        mode = "lfs" if name.endswith(LFS_KINDS) and not self.inline else "regular"
        entry: dict[str, Any] = {"path": name, "uploadMode": mode, "shouldIgnore": False}
        if name in commit.files:
            found = _entry(commit, name)
            entry["oid"] = found["lfs"]["oid"] if "lfs" in found else found["oid"]
        return entry

    def _commit(self, repo_id: str, repo: Repo, branch: str, body: bytes) -> Any:
        if branch not in repo.branches:
            raise StopError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        message, files, large, gone = "", {}, set(), set()
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in repo.large:
                    raise StopError(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = repo.large[value["oid"]]
                large.add(value["path"])
            elif line["key"] == "deletedFile":
                gone.add(value["path"])
            else:
                raise StopError(400, f"unknown operation {line['key']}")
        commit = repo.add(branch, message, files, frozenset(large), frozenset(gone))
        return {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{commit.oid}"}

    def _info(self, repo_id: str, repo: Repo, commit: Commit) -> dict[str, Any]:
        return {
            "_id": "0",
            "id": repo_id.removeprefix("datasets/"),
            "sha": commit.oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in sorted(commit.files)],
        }

    def take(self, call: str) -> Fault | None:
        """The fault that this call meets."""
        with self._lock:
            for fault in self.faults:
                if fault.times and re.search(fault.call, call):
                    fault.times -= 1
                    return fault
        return None


def _wrong(card: dict[str, Any]) -> list[dict[str, str]]:
    """What the Hub would not take of a card's metadata."""
    types = [result["dataset"]["type"] for model in card.get("model-index", []) for result in model["results"]]
    wrong = [f"dataset.type {name!r}" for name in types if not re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", name)]
    licence = card.get("license")
    wrong += [f"license {licence!r}"] if licence is not None and licence != licence.lower().replace(" ", "-") else []
    return [{"message": f"{each} fails to match the required pattern"} for each in wrong]


def _entry(commit: Commit, name: str) -> dict[str, Any]:
    content = commit.files[name]
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
    if name in commit.large:
        digest = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
        entry |= {"oid": _blob(pointer), "lfs": {"oid": digest, "size": len(content), "pointerSize": len(pointer)}}
    return entry


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: ModelHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.route()

        def do_HEAD(self) -> None:
            self.route()

        def do_POST(self) -> None:
            self.route()

        def do_PUT(self) -> None:
            self.route()

        def route(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            call = f"{self.command} {path}"
            fault = hub.take(call)
            hub.asked.append(call)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.tokens.append((call, token))
            length = int(self.headers.get("Content-Length") or 0)
            if fault and fault.cut and not fault.after:
                self.rfile.read(length // 2 if length else 1024 * ("Transfer-Encoding" in self.headers))
                self.cut()
                return
            body = self.chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
            hub.received.append((call, body))
            if fault and not fault.after:
                self.refuse(StopError(fault.status, fault.error), fault.headers)
                return
            try:
                with hub._lock:
                    commit, name, found = None, "", None
                    if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", address.path):
                        if token == EXPIRED:
                            raise StopError(401, 'User Access Token "laptop" is expired')
                        commit, name = hub.repo(match[1], token).at(unquote(match[2])), unquote(match[3])
                    else:
                        found = hub.answer(self.command, path, parse_qs(address.query), body, token)
            except StopError as stop:
                self.refuse(stop, {})
                return
            if fault and fault.cut:
                self.cut()
            elif fault:
                self.refuse(StopError(fault.status, fault.error), fault.headers)
            elif commit is not None:
                self.file(commit, name)
            else:
                self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

        def chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def cut(self) -> None:
            self.close_connection = True
            self.connection.close()

        def refuse(self, stop: StopError, headers: dict[str, str]) -> None:
            kind = {"X-Error-Code": stop.kind} if stop.kind else {}
            about = {"Content-Type": "application/json", "X-Error-Message": stop.error} | kind | headers
            self.send(stop.code, json.dumps({"error": stop.error, **stop.further}).encode(), about)

        def send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def file(self, commit: Commit, name: str) -> None:
            about = {"X-Repo-Commit": commit.oid}
            if name not in commit.files:
                self.send(404, b"", about | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
                return
            content = commit.files[name]
            entry = _entry(commit, name)
            if "lfs" in entry:
                tag = f'"{entry["lfs"]["oid"]}"'
                about |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": tag, "ETag": tag}
            else:
                about["ETag"] = f'"{entry["oid"]}"'
            self.send(200, content, about | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"})

    return Handler
