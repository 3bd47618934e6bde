"""Cache embeddings: in memory within a budget, and on disk if the user asks for that."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pocketvlm.system.machine import memory
from pocketvlm.vision.embedding_disk_cache import DiskCache

Rows = npt.NDArray[np.float32]  # [tokens, width]
Tier = Literal["none", "disk", "memory"]  # where embeddings came from; none: from the encoder
TIERS: tuple[Tier, ...] = ("none", "disk", "memory")  # the slowest first

ENTRY = 1024  # bytes that an entry is assumed to cost besides its embeddings: keys, places in tables
_DEFAULT_SIZE = 256 << 20  # bytes
_MEMORY_SHARE = 32  # the default is at most 1/32 of this machine's memory


def default_size() -> int:
    """Return the budget in bytes that is used without an option."""
    total_available = memory()
    return min(_DEFAULT_SIZE, total_available[0] // _MEMORY_SHARE) if total_available else _DEFAULT_SIZE


@dataclass(frozen=True)
class CacheStatistics:
    """Totals of tiles, and the `bytes` in memory now. `evictions` counts tiles that were removed from memory."""

    encoded: int = 0
    from_memory: int = 0
    from_disk: int = 0
    evictions: int = 0
    bytes: int = 0


class EmbeddingCache:
    """A cache of one encoder's embeddings, `width` wide, within `size` bytes, overhead included.

    Least recently used entries are evicted first. The key of an entry is its content: a hash of what the encoder gets,
    on which alone the embeddings depend. The names of spans refer to contents, so that a known picture needs no pixel
    work. Any thread may call. The caller must see to it that two threads do not encode the same tile at the same time.

    `encoder` names all that embeddings depend on besides the pixels; it is part of the names of `files`, which outlive
    the encoder.
    """

    def __init__(self, size: int = 0, *, width: int = 0, files: DiskCache | None = None, encoder: str = "") -> None:
        self._size = size
        self._width = width
        self._files = files
        self._encoder = encoder
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Rows | str] = OrderedDict()  # content to embeddings, and name to content
        self._statistics = CacheStatistics()

    def recall(self, name: str) -> Rows | None:
        """Return the embeddings that are in memory under a span's name, without reading files or pixels."""
        with self._lock:
            content = self._entries.get(name)
            rows = self._entries.get(content) if isinstance(content, str) else None
            if not isinstance(content, str) or not isinstance(rows, np.ndarray):
                return None
            self._entries.move_to_end(name)
            self._entries.move_to_end(content)
            self._count("from_memory")
            return rows

    def encode(
        self, name: str, tokens: int, content: Callable[[], str], compute: Callable[[], Rows]
    ) -> tuple[Rows, Tier]:
        """Return the embeddings of a span, read-only, from the cache, or else computed and stored.

        Errors of `compute` pass through, and nothing is stored.
        """
        if not self._size and self._files is None:
            rows = compute()
            with self._lock:
                self._count("encoded")
            return rows, "none"
        if (recalled := self.recall(name)) is not None:
            return recalled, "memory"
        with self._lock:
            entry = self._entries.get(name)
        key = entry if isinstance(entry, str) else content()
        rows, tier = self._look_up(key, tokens, compute)
        with self._lock:
            self._store(name, key)
            self._store(key, rows)
        return rows, tier

    def clear(self) -> None:
        """Remove all entries, files included. Raises PictureCacheError where a file cannot be removed."""
        with self._lock:
            self._entries.clear()
            self._statistics = replace(self._statistics, bytes=0)
        if self._files is not None:
            self._files.clear()

    def statistics(self) -> CacheStatistics:
        """Return the statistics of this moment."""
        with self._lock:
            return self._statistics

    def _look_up(self, key: str, tokens: int, compute: Callable[[], Rows]) -> tuple[Rows, Tier]:
        with self._lock:
            in_memory = self._entries.get(key)
            if isinstance(in_memory, np.ndarray):
                self._count("from_memory")
                return in_memory, "memory"
        file = hashlib.sha256(f"{self._encoder}:{key}".encode()).hexdigest()
        on_disk = self._files.read(file, (tokens, self._width)) if self._files is not None else None
        if on_disk is not None:
            with self._lock:
                self._count("from_disk")
            return on_disk, "disk"
        rows = compute()
        rows.setflags(write=False)
        with self._lock:
            self._count("encoded")
        if self._files is not None:
            self._files.write(file, rows)
        return rows, "none"

    def _store(self, key: str, value: Rows | str) -> None:
        cost = _cost(value)
        if cost > self._size:
            return
        used = self._statistics.bytes - (_cost(self._entries.pop(key)) if key in self._entries else 0)
        while used + cost > self._size:
            _, evicted = self._entries.popitem(last=False)
            used -= _cost(evicted)
            if not isinstance(evicted, str):
                self._count("evictions")
        self._entries[key] = value
        self._statistics = replace(self._statistics, bytes=used + cost)

    def _count(self, field: str) -> None:
        self._statistics = replace(self._statistics, **{field: getattr(self._statistics, field) + 1})


def content_of(pixels: npt.NDArray[np.uint8]) -> str:
    """Return the content key of a tile that an encoder gets as it is."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _cost(value: Rows | str) -> int:
    return ENTRY + (0 if isinstance(value, str) else value.nbytes)
