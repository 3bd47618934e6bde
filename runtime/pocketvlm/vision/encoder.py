"""The seam between pictures and engine: what encodes a tile, and what a prepared picture looks like in a prompt."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pocketvlm.pictures.images import Picture
from pocketvlm.templates.prompt import TextSpan
from pocketvlm.vision.embedding_cache import EmbeddingCache, Tier
from pocketvlm.vision.family import RGB, Detail

Embeddings = npt.NDArray[np.float32]  # [tokens, n_embd_inp]


class VisionEncoder(Protocol):
    """Encodes one tile that already has the size its family says. libmtmd and onnxruntime are both one."""

    name: str
    together: int  # tiles that may be encoded at a time, each by a thread of its own

    def encode_tile(self, tile: RGB) -> Embeddings: ...

    def cancel(self) -> None:
        """Make the running encode raise Aborted soon, from any thread. Holds until `allow`."""
        ...

    def allow(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class EmbeddingSpan:
    """A run of embeddings in the prompt, to be computed by the vision that prepared it.

    `key` names the embeddings: equal keys, equal values. `positions` is int32 [1 or 4, tokens], relative to the
    span's start; the text after it goes on at `advance`. `control` are the control tokens whose embeddings the encoder
    puts among those of the picture, by place. One with `parts` takes its rows from them, in `order`; they are spans of
    whole tiles and stand nowhere themselves.
    """

    key: str
    index: int
    positions: npt.NDArray[np.int32]
    advance: int
    causal: bool = True
    control: Mapping[int, str] = field(default_factory=dict)
    parts: tuple[EmbeddingSpan, ...] = ()
    order: npt.NDArray[np.intp] | None = None

    @property
    def tiles(self) -> tuple[EmbeddingSpan, ...]:
        """What is to be encoded for it."""
        return self.parts or (self,)

    @property
    def tokens(self) -> int:
        return int(self.positions.shape[1])

    def at(self, start: int) -> npt.NDArray[np.int32]:
        """The positions of a span that begins at `start`."""
        positions: npt.NDArray[np.int32] = self.positions + np.int32(start)
        positions[3:] = 0  # the fourth section of M-RoPE is unused
        return positions

    def arranged(self, rows: Sequence[Embeddings]) -> Embeddings:
        """Its embeddings out of those of its `tiles`."""
        return rows[0] if self.order is None else np.concatenate(rows)[self.order]


@dataclass
class PreparedImage:
    """A picture as the model will see it: texts, tokens and spans in prompt order, and what that took.

    Texts at the edges are not tokens yet: beside other text they may be part of longer ones.

    Made by a `Vision`, which knows how to `compute` its spans; `close` frees what that needs.
    """

    pieces: tuple[TextSpan | int | EmbeddingSpan, ...]
    original: tuple[int, int]  # (width, height)
    used: tuple[int, int]
    shrunk: bool
    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    cache: EmbeddingCache = field(default_factory=EmbeddingCache, repr=False)
    tile_sources: Counter[Tier] = field(default_factory=Counter)  # spans, by where their embeddings came from
    _counted: float = 0.0  # until when time in the encoder is part of `encode_ms`
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def spans(self) -> list[EmbeddingSpan]:
        return [piece for piece in self.pieces if isinstance(piece, EmbeddingSpan)]

    @property
    def tile_count(self) -> int:
        return sum(len(span.tiles) for span in self.spans)

    @property
    def tokens(self) -> int:
        return sum(span.tokens for span in self.spans)

    def recall(self, tile: EmbeddingSpan) -> Embeddings | None:
        """Those that are in memory, at once and on any thread."""
        rows = self.cache.recall(tile.key)
        if rows is not None:
            self._note("memory")
        return rows

    def encode(self, span: EmbeddingSpan) -> Embeddings:
        """float32 [span.tokens, n_embd_inp], from the cache or computed; Aborted where the vision was cancelled."""
        if span.parts:
            return span.arranged([self.encode(part) for part in span.parts])
        rows, tier = self.cache.encode(span.key, span.tokens, lambda: self.content(span), lambda: self.compute(span))
        self._note(tier)
        return rows

    def _note(self, tier: Tier) -> None:
        with self._lock:
            self.tile_sources[tier] += 1

    def spent(self, began: float) -> None:
        """Time in the encoder, from a time.perf_counter() until now; of tiles at the same time it counts once."""
        with self._lock:
            now = time.perf_counter()
            self.encode_ms += 1000 * (now - max(began, self._counted))
            self._counted = now

    def content(self, span: EmbeddingSpan) -> str:
        """Names what the encoder gets for a span: what has the same content has the same embeddings."""
        raise NotImplementedError

    def compute(self, span: EmbeddingSpan) -> Embeddings:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to free, unless a subclass says otherwise."""


class Vision(Protocol):
    """Prepares pictures; one per engine."""

    name: str
    image_token: str | None  # what the chat template writes for a picture; None: nothing is known about it
    at_once: int  # embeddings that the decoder must get in one batch; 0: they may be parted
    cache: EmbeddingCache
    together: int  # as its encoder's

    def prepare(self, picture: Picture, detail: Detail, max_tokens: int | None, param: str) -> PreparedImage:
        """From the size alone where the family is known: no pixel work before the prompt is known to fit."""
        ...

    def cancel(self) -> None:
        """Make the running encode raise Aborted soon, from any thread. Holds until `allow`."""
        ...

    def allow(self) -> None: ...

    def close(self) -> None: ...
