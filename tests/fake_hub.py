"""A Hugging Face Hub on this machine: the endpoints that huggingface_hub asks, and their faults."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "1" * 40, "older": "2" * 40}


@dataclass
class FakeHub:
    """The Hub's content and behaviour, to be changed by a test while it runs.

    files: by repository, revision and name. gated: repositories that want a token. broken_after: by file name, after
    how many bytes its next answer breaks off. stalled: files of which half arrives and no more, until
    they are taken out of the set. is_down: answers nothing but 503. downloads: how often the content of
    each file was asked for; ranges: the Range headers of those questions. tokens: those that were sent.
    """

    files: dict[str, dict[str, Mapping[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken_after: dict[str, int] = field(default_factory=dict)
    stalled: set[str] = field(default_factory=set)
    is_down: bool = False
    downloads: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a Hub on a free port; its address is in `hub.url`."""

    class Handler(_Handler):
        content = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    content: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.content
        if token := self.headers.get("Authorization"):
            hub.tokens.add(token.removeprefix("Bearer "))
        if hub.is_down:
            self._send(503, b"out of order")
            return
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        owner, name, kind, *rest = [*(parts[2:] if is_api else parts), "", "", ""]
        repository = f"{owner}/{name}"
        revision = next((key for key, commit in COMMITS.items() if rest[0] in (key, commit)), rest[0] or "main")
        if repository not in hub.files:
            self._fail(404, "RepoNotFound")
        elif repository in hub.gated and not hub.tokens:
            self._fail(401 if is_api else 403, "GatedRepo")
        elif revision not in hub.files[repository]:
            self._fail(404, "RevisionNotFound")
        elif is_api:
            self._describe(kind, repository, revision)
        else:
            name = "/".join(part for part in rest[1:] if part)
            self._file(name, hub.files[repository][revision], COMMITS[revision])

    def _describe(self, kind: str, repository: str, revision: str) -> None:
        files = self.content.files[repository][revision]
        about: Any = {"id": repository, "sha": COMMITS[revision], "siblings": [{"rfilename": path} for path in files]}
        if kind == "tree":
            about = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
        self._send(200, json.dumps(about).encode())

    def _file(self, name: str, files: Mapping[str, bytes], commit: str) -> None:
        if name not in files:
            self._fail(404, "EntryNotFound")
            return
        hub, data, start = self.content, files[name], 0
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"], status = f"bytes {start}-{len(data) - 1}/{len(data)}", 206
        if self.command == "GET":
            hub.downloads[name] += 1
            if wanted:
                hub.ranges.append(wanted)
        if self.command == "GET" and name in hub.stalled:
            self._stall(data, headers)
            return
        self._send(
            status, data[start:], headers, cut=hub.broken_after.pop(name, None) if self.command == "GET" else None
        )

    def _stall(self, data: bytes, headers: Mapping[str, str]) -> None:
        self._send(200, data, headers, cut=len(data) // 2)
        while self.content.stalled:
            time.sleep(0.01)

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str] | None = None, *, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        if cut is not None:
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if cut is None else data[:cut])
