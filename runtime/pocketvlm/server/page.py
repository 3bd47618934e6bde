"""The page for browsers: static files out of the package, which call no other server and run nothing but themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pocketvlm.server.protocols.ollama.routes import say_hello

PREFIX = "/page/"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "txt": "text/plain; charset=utf-8",
}
_NO_SCRIPT = "default-src 'none'; frame-ancestors 'none'"
# A text of a model or a file that became markup could neither run a script nor call out. `blob:` are files that the
# page itself has made into pictures. Trusted Types: only DOMPurify may turn a text into markup.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_HEADERS = {
    "cache-control": "no-cache",  # the browser asks whether its copy is still right
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), display-capture=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "vary": "accept",
}


@dataclass(frozen=True)
class _File:
    data: bytes
    media_type: str
    etag: str

    def response(self, request: Request) -> Response:
        policy = _POLICY if self.media_type.startswith("text/html") else _NO_SCRIPT
        headers = {**_HEADERS, "content-security-policy": policy, "etag": self.etag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers={**headers, "content-type": self.media_type})


class Page:
    """The files of the page. `paths` are those that need no key: the page itself asks for it."""

    def __init__(self) -> None:
        folder = files("pocketvlm.server") / "static"
        names = (entry.name for entry in folder.iterdir() if entry.is_file())
        self._files = {name: _read(name, (folder / name).read_bytes()) for name in names if _ending(name) in _TYPES}
        self.paths = frozenset({"/", *(f"{PREFIX}{name}" for name in self._files)})

    def routes(self) -> list[Route]:
        others = [Route(f"{PREFIX}{name}", self._show, methods=["GET"]) for name in self._files]
        return [Route("/", self._index, methods=["GET"]), *others]

    async def _index(self, request: Request) -> Response:
        """Answer browsers with the page, and programs that look for a server with what they look for."""
        if "text/html" not in request.headers.get("accept", ""):
            return await say_hello(request)
        return self._files["index.html"].response(request)

    async def _show(self, request: Request) -> Response:
        return self._files[request.url.path.removeprefix(PREFIX)].response(request)


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _read(name: str, data: bytes) -> _File:
    return _File(data, _TYPES[_ending(name)], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
