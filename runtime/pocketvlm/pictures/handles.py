"""Keep uploaded files, so that requests can name them by a handle: `sha256:` and the file's SHA-256 in hex.

The encoded files are kept, for a limited time and within limits. Decoded pictures would take about ten times the
memory, and decoding is a small part of the cost of a picture.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pocketvlm.errors import ImageNotFoundError, ImageTooLargeError, RequestError
from pocketvlm.messages.parts import HANDLE_SCHEME
from pocketvlm.system.options import MEBIBYTES, Option, check_options


@dataclass(frozen=True)
class PictureHandle:
    """A kept file. A request's `url` may be its `id`. Sizes are in pixels and bytes, times in seconds since 1970.

    `pages` counts its pictures: pages, or frames; of a video those that are shown by default. `width` and `height` are
    those of the first one, of a PDF at 150 dpi, and 0 where only others can be read. The file is removed at
    `expires_at`, which every use postpones, or earlier to make room for others.
    """

    id: str
    width: int
    height: int
    bytes: int
    created_at: int
    expires_at: int
    pages: int = 1


@dataclass(frozen=True)
class HandleLimits:
    """A file is kept for `seconds` after its last use. At most `count` files with `size` bytes in all are kept.

    Raises RequestError whose `param` names the field.
    """

    seconds: Annotated[
        float, Option("Seconds that a picture stays available after its last use.", ("--image-ttl",), above=0)
    ] = 3600.0
    count: Annotated[int, Option("Most pictures to keep for requests that name them.", ("--image-count",), least=0)] = (
        256
    )
    size: Annotated[
        int, Option("Memory for the files of these pictures, in {unit}.", ("--image-store",), MEBIBYTES, least=0)
    ] = 256 << 20

    def __post_init__(self) -> None:
        check_options(self)
        if self.seconds == math.inf:
            raise RequestError("must be finite", "seconds")


@dataclass
class _Entry:
    data: bytes
    width: int
    height: int
    pages: int
    created: float  # seconds since 1970
    expires: float


class PictureHandles:
    """The kept files. Least recently used ones are evicted first. Any thread may call."""

    def __init__(self, limits: HandleLimits | None = None, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits or HandleLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def add(self, data: bytes, size: tuple[int, int], pages: int = 1) -> PictureHandle:
        """Keep a file that was read: the first of its `pages` has `size`.

        Raises ImageTooLargeError where the limits exclude it.
        """
        limits = self._limits
        if not limits.count:
            raise ImageTooLargeError("no files are kept here; send the file with the request")
        if len(data) > limits.size:
            raise ImageTooLargeError(
                f"a file of {len(data):,} bytes is over the limit of {limits.size:,} for all files"
            )
        id = HANDLE_SCHEME + hashlib.sha256(data).hexdigest()
        with self._lock:
            now = self._clock()
            old = self._drop(id)
            self._expire(now)
            while self._entries and (len(self._entries) >= limits.count or self._bytes + len(data) > limits.size):
                self._drop(next(iter(self._entries)))
            entry = _Entry(data, *size, pages, old.created if old else now, now + limits.seconds)
            self._entries[id] = entry
            self._bytes += len(data)
            return _handle(id, entry)

    def find(self, id: str, param: str | None = None) -> PictureHandle:
        """Return a handle; this does not count as a use. Raises ImageNotFoundError where it is unknown or expired."""
        with self._lock:
            return _handle(id, self._entry(id, param))

    def remove(self, id: str, param: str | None = None) -> None:
        """Remove a file. Raises ImageNotFoundError where it is unknown or expired."""
        with self._lock:
            self._entry(id, param)
            self._drop(id)

    def use(self, id: str, param: str) -> tuple[bytes, int]:
        """Return a file and its number of pages, and keep it for longer. Raises ImageNotFoundError."""
        with self._lock:
            entry = self._entry(id, param)
            entry.expires = self._clock() + self._limits.seconds
            self._entries.move_to_end(id.lower())
            return entry.data, entry.pages

    def held(self) -> tuple[int, int]:
        """Return the number of kept files and their bytes."""
        with self._lock:
            self._expire(self._clock())
            return len(self._entries), self._bytes

    def _entry(self, id: str, param: str | None) -> _Entry:
        self._expire(self._clock())
        entry = self._entries.get(id.lower())
        if entry is None:
            raise ImageNotFoundError("this handle is unknown or has expired; send the file again", param)
        return entry

    def _expire(self, now: float) -> None:
        for id in [id for id, entry in self._entries.items() if entry.expires <= now]:
            self._drop(id)

    def _drop(self, id: str) -> _Entry | None:
        entry = self._entries.pop(id.lower(), None)
        if entry is not None:
            self._bytes -= len(entry.data)
        return entry


def _handle(id: str, entry: _Entry) -> PictureHandle:
    times = int(entry.created), int(entry.expires)
    return PictureHandle(id.lower(), entry.width, entry.height, len(entry.data), *times, entry.pages)
