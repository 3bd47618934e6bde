"""Check who may call: the Host header (DNS rebinding), Origin and Sec-Fetch-Site (other web pages), and the key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.error_forms import error_response
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.settings import Settings, is_loopback

# Browsers keep answers from the pages of other sites, even their size and whether they are pictures.
_NOT_SHARED = {"cross-origin-resource-policy": "same-origin", "x-content-type-options": "nosniff"}
OPEN_PATHS = frozenset({"/health", "/v1/health"})  # process monitors call them without a key


class AccessControl:
    """ASGI middleware that answers CORS preflights and refuses requests that are not allowed.

    `open_paths` need no key, as OPEN_PATHS do not.
    """

    def __init__(self, app: ASGIApp, settings: Settings, open_paths: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._open_paths = OPEN_PATHS | open_paths
        self._key = _digest(settings.api_key) if settings.api_key else None
        self._hosts = {"localhost", "127.0.0.1", "[::1]", _bracketed(settings.host)}
        self._hosts.update(host.lower() for host in settings.allowed_hosts)
        # The owner of a name can point it at this machine; an address is safe from that. The key is required anyway.
        self._any_address = not is_loopback(settings.host)
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        send = _with_headers(send, _NOT_SHARED)
        try:
            host = headers.get("host", "")
            self._check_host(host)
            # Browsers send the origin with a page's own POST requests, too.
            if origin is not None and not _is_own(origin, host):
                self._check_origin(origin)
                send = _with_headers(send, {"access-control-allow-origin": origin, "vary": "Origin"})
                if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                    await _preflight(headers)(scope, receive, send)
                    return
            if origin is None:
                self._check_site(headers, scope["path"])
            if scope["path"] not in self._open_paths:
                self._check_key(headers)
        except HTTPError as error:
            RequestRecord.of(scope).code = error.code
            await error_response(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, header: str) -> None:
        host = header.lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if host in self._hosts or name in self._hosts or (self._any_address and _is_address(name)):
            return
        raise HTTPError(403, "this Host header is not served here; --allowed-host adds one", code="host_not_allowed")

    def _check_origin(self, origin: str) -> None:
        if "*" not in self._origins and origin not in self._origins:
            raise _origin_not_allowed()

    def _check_site(self, headers: Headers, path: str) -> None:
        """Refuse what a page of another site loads without saying its origin, such as a picture.

        A link may lead to the page. Programs do not send these headers.
        """
        is_link = headers.get("sec-fetch-mode") == "navigate" and path in self._open_paths
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_link:
            raise _origin_not_allowed()

    def _check_key(self, headers: Headers) -> None:
        """Accept the key as Bearer or as x-api-key, which Anthropic's clients send; one that is right is enough."""
        if self._key is None:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = [headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        # Comparing digests hides the content and the length of the key from timing attacks.
        if not any(hmac.compare_digest(_digest(key.strip()), self._key) for key in sent):
            raise HTTPError(
                401,
                "a valid key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                None,
                "invalid_api_key",
                {"www-authenticate": "Bearer"},
            )


def _origin_not_allowed() -> HTTPError:
    message = "web pages of this origin may not call; --allow-origin adds one"
    return HTTPError(403, message, code="origin_not_allowed")


def _is_own(origin: str, host: str) -> bool:
    """Return whether a page that this server itself has sent calls it; `host` is one that is served.

    Behind a proxy with TLS the page's scheme is https.
    """
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _bracketed(host: str) -> str:
    return f"[{host}]".lower() if ":" in host and not host.startswith("[") else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _preflight(headers: Headers) -> Response:
    allowed = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": headers.get("access-control-request-headers", "authorization, content-type"),
        "access-control-max-age": "600",
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=allowed)


def _with_headers(send: Send, extra: Mapping[str, str]) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(extra)
        await send(message)

    return wrapped
