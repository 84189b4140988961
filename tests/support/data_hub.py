"""A small server on the loopback that answers the Hub's calls for one data set: enough for `datasets` to load it."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of a folder as the data set `name`.

    Attributes:
        endpoint: for `HF_ENDPOINT`.
        asked: the calls that came in, in order.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.asked = name, folder, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def info(self) -> dict[str, object]:
        return {
            "_id": "0",
            "id": self.name,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path.name} for path in sorted(self.folder.iterdir())],
        }

    def entries(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in sorted(self.folder.iterdir())
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", headers.get("length", str(len(body))))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def json(self, value: object) -> None:
                self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

            def do_GET(self) -> None:
                self.route()

            def do_HEAD(self) -> None:
                self.route()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.route()

            def route(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.asked.append(f"{self.command} {path}")
                api, files = f"/api/datasets/{hub.name}", f"/datasets/{hub.name}/resolve/"
                if path.startswith((f"{api}/tree/", f"{api}/paths-info/")):
                    self.json(hub.entries())
                elif path == api or path.startswith(f"{api}/revision/"):
                    self.json(hub.info())
                elif path.startswith(files):
                    self.file(hub.folder / path.removeprefix(files).split("/", 1)[1])
                else:
                    self.answer(404, b"{}", X_Error_Code="EntryNotFound")

            def file(self, path: Path) -> None:
                if not path.is_file():
                    self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                    return
                data = path.read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.answer(200, data, X_Repo_Commit=COMMIT, ETag=etag, Accept_Ranges="bytes")

        return Handler
