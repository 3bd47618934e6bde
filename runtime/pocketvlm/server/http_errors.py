"""Errors as HTTP responses: a status, and OpenAI's body, which has four keys; other APIs write their own forms."""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pocketvlm.errors import (
    EngineBusyError,
    EngineClosedError,
    EngineCrashedError,
    GenerationCancelledError,
    ImageNotFoundError,
    ModelError,
    QueueFullError,
    RequestError,
    SystemLimitError,
    shortened,
)
from pocketvlm.system.limits import shortage

logger = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(eq=False)
class HTTPError(Exception):
    """`param` is the path of the field that is wrong, `code` is for programs."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.code}"

    @property
    def type(self) -> str:
        return _TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")

    def json(self) -> bytes:
        """Return the body in ASCII: the client may have sent half of a surrogate pair."""
        param = self.param and shortened(self.param)
        error = {"message": self.message, "type": self.type, "param": param, "code": self.code}
        return json.dumps({"error": error}).encode()


def _bad_request(error: RequestError, sent_path: Callable[[str], str]) -> HTTPError:
    """Return an error whose message has the path of the field, because most clients show nothing else."""
    path = error.param and sent_path(error.param)
    message = f"{shortened(path)}: {error.message}" if path else error.message
    status = 404 if isinstance(error, ImageNotFoundError) else 400
    return HTTPError(status, message, path, error.code or "invalid_value")


def shutting_down() -> HTTPError:
    return HTTPError(503, "the server is shutting down", code="shutting_down", headers={"retry-after": "5"})


def http_error_of(error: BaseException, sent_path: Callable[[str], str] = str) -> HTTPError:
    """Return the response for any exception. Log one that is not the client's fault, without its values.

    `sent_path` maps the path of a field of ChatRequest to that of what the client sent.
    """
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, RequestError):
        return _bad_request(error, sent_path)
    if isinstance(error, QueueFullError):
        return HTTPError(429, str(error), code="queue_full", headers={"retry-after": str(math.ceil(error.retry_after))})
    if isinstance(error, EngineBusyError):
        return HTTPError(503, str(error), code="engine_busy", headers={"retry-after": "5"})
    if isinstance(error, EngineCrashedError):
        return HTTPError(500, str(error), code="engine_crashed")
    if isinstance(error, ModelError):  # the client does not get the path, and the log not the text, which may quote
        logger.error("%s: %s", type(error).__name__, shortened(error.path) if error.path else "no file")
        return HTTPError(500, error.message, code="model_error")
    if isinstance(error, GenerationCancelledError | EngineClosedError):
        return shutting_down()
    if reason := shortage(error):
        logger.error("%s", reason)
        return HTTPError(503, reason, code=SystemLimitError.code, headers={"retry-after": "5"})
    # An exception's text may contain what the client sent; the traceback's lines do not.
    where = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    logger.error("%s\n%s", type(error).__name__, where.rstrip())
    return HTTPError(500, "an internal error; the server's log says where", code="internal_error")
