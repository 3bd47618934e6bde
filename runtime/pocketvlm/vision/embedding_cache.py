"""Embeddings that were computed once: in memory within a budget, and in files where somebody asked for that."""

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
from pocketvlm.vision.disk_cache import DiskCache

Rows = npt.NDArray[np.float32]  # [tokens, width]
Tier = Literal["none", "disk", "memory"]  # where embeddings were found
TIERS: tuple[Tier, ...] = ("none", "disk", "memory")  # the slowest first

ENTRY = 1024  # bytes that an entry is taken to cost besides its embeddings: names, places in tables
_MOST, _SHARE = 256 << 20, 32  # bytes by default, but no more than one part in so many of this machine's memory


def default_size() -> int:
    """Bytes of the budget where nobody names one."""
    known = memory()
    return min(_MOST, known[0] // _SHARE) if known else _MOST


@dataclass(frozen=True)
class CacheStatistics:
    """Totals of tiles, and `bytes` that are taken now; `evictions` made room in memory."""

    encoded: int = 0
    from_memory: int = 0
    from_disk: int = 0
    evictions: int = 0
    bytes: int = 0


class EmbeddingCache:
    """Of one encoder, `width` wide. `size` is the budget in bytes, everything included; least recently used goes first.

    An entry is found by its content: a hash of what the encoder gets, which it alone determines. `names` of spans lead
    there as well, so that a picture that is known needs no pixel work. Any thread may call. That tiles which several
    requests want are encoded once is for the caller to see to: one after the other, or different ones together.
    """

    def __init__(self, size: int = 0, *, width: int = 0, files: DiskCache | None = None, encoder: str = "") -> None:
        self._size = size
        self._width = width
        self._files = files
        self._encoder = encoder  # what its embeddings depend on besides the pixels; for files, which outlive it
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Rows | str] = OrderedDict()  # by content; or a name, to its content
        self._statistics = CacheStatistics()

    def recall(self, name: str) -> Rows | None:
        """What is in memory under a span's name. Neither files nor pixels are touched."""
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
        """Embeddings of a span, read-only: found, or computed and kept. What `compute` raises is not kept."""
        if not self._size and self._files is None:
            rows = compute()
            with self._lock:
                self._count("encoded")
            return rows, "none"
        if (known := self.recall(name)) is not None:
            return known, "memory"
        with self._lock:
            told = self._entries.get(name)
        key = told if isinstance(told, str) else content()
        rows, tier = self._find(key, tokens, compute)
        with self._lock:
            self._keep(name, key)
            self._keep(key, rows)
        return rows, tier

    def clear(self) -> None:
        """Forget all, files included: PictureCacheError where those cannot be removed."""
        with self._lock:
            self._entries.clear()
            self._statistics = replace(self._statistics, bytes=0)
        if self._files is not None:
            self._files.clear()

    def statistics(self) -> CacheStatistics:
        with self._lock:
            return self._statistics

    def _find(self, key: str, tokens: int, compute: Callable[[], Rows]) -> tuple[Rows, Tier]:
        with self._lock:
            found = self._entries.get(key)
            if isinstance(found, np.ndarray):
                self._count("from_memory")
                return found, "memory"
        file = hashlib.sha256(f"{self._encoder}:{key}".encode()).hexdigest()
        stored = self._files.read(file, (tokens, self._width)) if self._files is not None else None
        if stored is not None:
            with self._lock:
                self._count("from_disk")
            return stored, "disk"
        rows = compute()
        rows.setflags(write=False)
        with self._lock:
            self._count("encoded")
        if self._files is not None:
            self._files.write(file, rows)
        return rows, "none"

    def _keep(self, key: str, value: Rows | str) -> None:
        cost = _cost(value)
        if cost > self._size:
            return
        taken = self._statistics.bytes - (_cost(self._entries.pop(key)) if key in self._entries else 0)
        while taken + cost > self._size:
            _, dropped = self._entries.popitem(last=False)
            taken -= _cost(dropped)
            if not isinstance(dropped, str):
                self._count("evictions")
        self._entries[key] = value
        self._statistics = replace(self._statistics, bytes=taken + cost)

    def _count(self, what: str) -> None:
        self._statistics = replace(self._statistics, **{what: getattr(self._statistics, what) + 1})


def content_of(pixels: npt.NDArray[np.uint8]) -> str:
    """The content of a tile that is given to an encoder as it is."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _cost(value: Rows | str) -> int:
    return ENTRY + (0 if isinstance(value, str) else value.nbytes)
