"""What is known of picture files that were read before. A conversation sends its pictures again with every question."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

_MOST = 1024  # files


@dataclass(frozen=True)
class KnownFile:
    """What `Picture` says about the picture of a file: its (width, height), and the fields of the same names."""

    size: tuple[int, int]
    digest: str
    pages: int
    notes: tuple[str, ...]


class KnownFiles:
    """Remembers files by the SHA-256 of their bytes. The least recently used are forgotten first. Thread-safe."""

    def __init__(self) -> None:
        self._files: OrderedDict[bytes, KnownFile] = OrderedDict()
        self._lock = Lock()

    def get(self, sha256: bytes) -> KnownFile | None:
        with self._lock:
            if sha256 in self._files:
                self._files.move_to_end(sha256)
            return self._files.get(sha256)

    def add(self, sha256: bytes, file: KnownFile) -> None:
        with self._lock:
            self._files[sha256] = file
            self._files.move_to_end(sha256)
            if len(self._files) > _MOST:
                self._files.popitem(last=False)
