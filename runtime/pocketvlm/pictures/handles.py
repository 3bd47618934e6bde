"""Keep uploaded pictures, so that requests can name them by a handle: `sha256:` and the file's SHA-256 in hex.

The encoded files are kept, for a limited time and within limits. Decoded pictures would take about ten times the
memory, and decoding is a small part of the cost of a picture.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pocketvlm.errors import ImageNotFoundError, ImageTooLargeError, RequestError
from pocketvlm.messages import ImagePart, ImageURLPart
from pocketvlm.messages.parts import source_path
from pocketvlm.pictures import base64_text
from pocketvlm.pictures.images import Picture
from pocketvlm.system.options import MEBIBYTES, Option, check_options

SCHEME = "sha256:"


@dataclass(frozen=True)
class PictureHandle:
    """A kept picture. A request's `url` may be its `id`. Sizes are in pixels and bytes, times in seconds since 1970.

    The picture is removed at `expires_at`, which every use postpones, or earlier to make room for others.
    """

    id: str
    width: int
    height: int
    bytes: int
    created_at: int
    expires_at: int


@dataclass(frozen=True)
class HandleLimits:
    """A picture is kept for `seconds` after its last use. At most `count` pictures with `size` bytes in all are kept.

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
    created: float  # seconds since 1970
    expires: float


class PictureHandles:
    """The kept pictures. Least recently used ones are evicted first. Any thread may call."""

    def __init__(self, limits: HandleLimits | None = None, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits or HandleLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def add(self, data: bytes, size: tuple[int, int]) -> PictureHandle:
        """Keep a file that was read as a picture of `size`. Raises ImageTooLargeError where the limits exclude it."""
        limits = self._limits
        if not limits.count:
            raise ImageTooLargeError("no pictures are kept here; send the picture with the request")
        if len(data) > limits.size:
            raise ImageTooLargeError(
                f"a file of {len(data):,} bytes is over the limit of {limits.size:,} for all files"
            )
        id = SCHEME + hashlib.sha256(data).hexdigest()
        with self._lock:
            now = self._clock()
            old = self._drop(id)
            self._expire(now)
            while self._entries and (len(self._entries) >= limits.count or self._bytes + len(data) > limits.size):
                self._drop(next(iter(self._entries)))
            entry = _Entry(data, *size, old.created if old else now, now + limits.seconds)
            self._entries[id] = entry
            self._bytes += len(data)
            return _handle(id, entry)

    def find(self, id: str, param: str | None = None) -> PictureHandle:
        """Return a handle; this does not count as a use. Raises ImageNotFoundError where it is unknown or expired."""
        with self._lock:
            return _handle(id, self._entry(id, param))

    def remove(self, id: str, param: str | None = None) -> None:
        """Remove a picture. Raises ImageNotFoundError where it is unknown or expired."""
        with self._lock:
            self._entry(id, param)
            self._drop(id)

    def resolve(self, part: ImageURLPart | ImagePart, param: str) -> ImageURLPart | ImagePart:
        """Return the part, or one with the file's bytes if it names a handle. Raises ImageNotFoundError."""
        url = part.address
        if url is None or not url.lower().startswith(SCHEME):
            return part
        with self._lock:
            entry = self._entry(url, source_path(part, param))
            entry.expires = self._clock() + self._limits.seconds
            self._entries.move_to_end(url.lower())
            return ImagePart(type="image", image=entry.data)

    def held(self) -> tuple[int, int]:
        """Return the number of kept pictures and their bytes."""
        with self._lock:
            self._expire(self._clock())
            return len(self._entries), self._bytes

    def _entry(self, id: str, param: str | None) -> _Entry:
        self._expire(self._clock())
        entry = self._entries.get(id.lower())
        if entry is None:
            raise ImageNotFoundError("this handle is unknown or has expired; send the picture again", param)
        return entry

    def _expire(self, now: float) -> None:
        for id in [id for id, entry in self._entries.items() if entry.expires <= now]:
            self._drop(id)

    def _drop(self, id: str) -> _Entry | None:
        entry = self._entries.pop(id.lower(), None)
        if entry is not None:
            self._bytes -= len(entry.data)
        return entry


def file_of(image: Any, picture: Picture) -> bytes:
    """Return the file that `picture` was read from, or the picture as PNG if there was no file."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    is_text = isinstance(image, str) and (base64_text.is_data_uri(image) or base64_text.is_picture(image))
    if isinstance(image, str | os.PathLike) and not is_text and not str(image).lower().startswith("file:"):
        return Path(image).read_bytes()
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _handle(id: str, entry: _Entry) -> PictureHandle:
    times = int(entry.created), int(entry.expires)
    return PictureHandle(id.lower(), entry.width, entry.height, len(entry.data), *times)
