"""A server of one's own that speaks the hub's protocol: repositories in memory, and the troubles that networks have."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 10_000  # bytes: more lie in Git LFS, behind a redirect to another host


@dataclass
class Repository:
    """`files` by name. What is in `served` is served in place of it, None as missing."""

    files: dict[str, bytes]
    served: dict[str, bytes | None] = field(default_factory=dict)
    listed: list[dict[str, object]] = field(default_factory=list)  # besides the files
    refused: tuple[int, str] | None = None  # status and X-Error-Code of every file
    headers: dict[str, str] = field(default_factory=dict)  # more of every file that is not large
    commit: str = COMMIT
    branches: tuple[str, ...] = ("main", COMMIT)

    def siblings(self) -> list[dict[str, object]]:
        found = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            sibling: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
            if len(data) > LARGE:
                sha256 = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
            found.append(sibling)
        return found + self.listed


@dataclass
class HubServer:
    """`cuts` says after how many bytes the next answers to requests of a file break off; `stall` holds one there."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    status: int | None = None  # of every answer
    stalled: threading.Event = field(default_factory=threading.Event)
    stall: threading.Event | None = None
    log: list[tuple[str, str | None, str | None]] = field(default_factory=list)  # path, range, token
    agents: set[str | None] = field(default_factory=set)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, name: str) -> list[str | None]:
        """The ranges of the requests for a file's content."""
        return [span for path, span, _ in self.log if path.startswith("/cdn/") and path.endswith(f"/{name}")]


@contextmanager
def serving() -> Iterator[HubServer]:
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.agents.add(self.headers.get("User-Agent"))
        self.hub.log.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.hub.status:
            self._answer(self.hub.status, b"trouble")
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif path.startswith("/cdn/"):
            repository, _, name = path.removeprefix("/cdn/").partition("//")
            self._file(self.hub.repositories[repository], name)
        else:
            self._resolve(path[1:])

    def _api(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        found = self.hub.repositories.get(name)
        if found is None:
            self._answer(401, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif revision and revision not in found.branches:
            self._answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            told = {"id": name, "sha": found.commit, "siblings": found.siblings()}
            self._answer(200, json.dumps(told).encode(), **{"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        repository, _, name = path.partition(f"/resolve/{COMMIT}/")
        found = self.hub.repositories[repository]
        if found.refused:
            self._answer(found.refused[0], b"", **{"X-Error-Code": found.refused[1], **found.headers})
        elif name not in found.files or found.served.get(name, b"") is None:
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
        elif len(found.files[name]) > LARGE:
            sha256 = hashlib.sha256(found.files[name]).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"'}
            headers["X-Linked-Size"] = str(len(found.files[name]))
            self._answer(302, b"", Location=f"http://localhost:{self.hub.port}/cdn/{repository}//{name}", **headers)
        else:
            data = found.served.get(name) or found.files[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', **found.headers}
            self._answer(200, data, **headers)

    def _file(self, found: Repository, name: str) -> None:
        data = found.served.get(name) or found.files[name]
        span, start, status = self.headers.get("Range"), 0, 200
        headers = {"ETag": f'"{hashlib.sha256(found.files[name]).hexdigest()}"', "Accept-Ranges": "bytes"}
        if span and self.hub.ranges:
            start, status = int(span.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = self.hub.cuts.get(name)
        self._answer(status, data[start:], cuts.pop(0) if cuts else None, **headers)

    def _answer(self, status: int, data: bytes, cut: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if cut is None:
            self.wfile.write(data)
            return
        self.wfile.write(data[:cut])
        self.wfile.flush()
        if self.hub.stall is not None:
            self.hub.stalled.set()
            self.hub.stall.wait(60)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
