"""The access log: one line per request, as text or JSON. It never contains prompts, pictures or answers."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from datetime import datetime, timezone
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm.errors import shortened
from pocketvlm.server.metrics import Metrics
from pocketvlm.server.request_record import RequestRecord

logger = logging.getLogger("pocketvlm.access")
# A whole handle reveals a picture or an answer. The colon of the first may be %3A.
_HANDLE = re.compile(r"(/images/.{11}|/responses/resp_.{6})[^/]*")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class AccessLog:
    """The outermost ASGI middleware: gives every request an id and a record, and logs both at the end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        header = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(header if _REQUEST_ID.fullmatch(header) else secrets.token_hex(8))
        record.open(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._metrics.request_ended(_method(scope), record)
            logger.info("request", extra={"fields": _fields(scope, record)})


def _method(scope: Scope) -> str:
    """Return a known method or "other": an invented one must not become a time series of its own."""
    return scope["method"] if scope["method"] in _METHODS else "other"


def _fields(scope: Scope, record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": _method(scope),
        "path": _HANDLE.sub(r"\1...", scope.get("raw_path", b"").decode("ascii", "replace"))[:100],
        "status": record.status,
        "ms": round(1000 * (time.perf_counter() - record.began), 1),
        "code": record.code,
        "left": record.left or None,
        "stream": record.stream,
        "model": record.model and shortened(record.model),
        "finish_reason": record.finish_reason,
    }
    if record.first_token is not None:
        fields["first_token_ms"] = round(1000 * record.first_token, 1)
    if record.timings is not None:
        timings = record.timings
        fields |= {"queue_ms": timings.queue_ms, "prefill_ms": timings.prefill_ms, "decode_ms": timings.decode_ms}
        if timings.load_ms:
            fields["load_ms"] = timings.load_ms
        fields["encode_ms"] = sum(image.encode_ms for image in timings.images)
        fields["images"] = len(timings.images)
    if record.usage is not None:
        details = record.usage.prompt_tokens_details
        fields |= {"prompt_tokens": record.usage.prompt_tokens, "completion_tokens": record.usage.completion_tokens}
        fields |= {"cached_tokens": details.cached_tokens, "image_tokens": details.image_tokens}
    rounded = {name: round(value, 1) if isinstance(value, float) else value for name, value in fields.items()}
    return {name: value for name, value in rounded.items() if value is not None}


class _Formatter(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        if self._as_json:
            head = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
            return json.dumps({**head, **fields})
        parts = [f"{name}={value}" for name, value in fields.items()] or [record.getMessage()]
        return " ".join([when, record.levelname, *parts])


def set_up(*, as_json: bool, level: str) -> None:
    """Send the log to standard error. Of uvicorn's own lines, only warnings are shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(as_json))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pocketvlm").setLevel(level.upper())
