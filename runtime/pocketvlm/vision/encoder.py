"""The interface between pictures and the engine: encoders of tiles, and prepared pictures in a prompt."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pocketvlm.messages import Detail
from pocketvlm.pictures.clip import Clip
from pocketvlm.pictures.images import Picture
from pocketvlm.templates.prompt import TextSpan
from pocketvlm.vision.embedding_cache import EmbeddingCache, Tier
from pocketvlm.vision.family import RGB, View

Embeddings = npt.NDArray[np.float32]  # [tokens, n_embd_inp]


class VisionEncoder(Protocol):
    """An encoder of tiles that already have the size that their family states: libmtmd or onnxruntime."""

    name: str
    concurrent_tiles: int  # the number of tiles that may be encoded at the same time, each on its own thread

    @property
    def frames(self) -> int:
        """The number of frames of a video that a tile may show."""
        ...

    def encode_tile(self, tile: RGB) -> Embeddings:
        """Return the embeddings of a tile. Raises Aborted after `cancel`, and EngineError.

        A tile of several frames has them in its last axis, uint8 [height, width, 3 * frames].
        """
        ...

    def cancel(self) -> None:
        """Make the running encode and all later ones raise Aborted until `allow`. May be called from any thread."""
        ...

    def allow(self) -> None:
        """Let encodes run again after `cancel`."""
        ...

    def close(self) -> None:
        """Free the encoder."""
        ...


@dataclass(frozen=True, eq=False)
class EmbeddingSpan:
    """A run of embeddings in the prompt, which the vision that prepared it computes.

    `key` names the embeddings: spans with equal keys have equal embeddings. `positions` is int32 [1 or 4, tokens],
    relative to the span's start; the text after the span continues at `advance`. `control` maps a row to the control
    token whose embedding the encoder puts there.

    A span with `parts` is composed: its rows are those of the parts, in `order`. Parts are spans of whole tiles that
    are not in the prompt themselves. With `weights`, float32 [tokens, n], each row is the weighted sum of n rows, which
    `order` [tokens, n] names.
    """

    key: str
    index: int
    positions: npt.NDArray[np.int32]
    advance: int
    causal: bool = True
    control: Mapping[int, str] = field(default_factory=dict)
    parts: tuple[EmbeddingSpan, ...] = ()
    order: npt.NDArray[np.intp] | None = None
    weights: npt.NDArray[np.float32] | None = None

    @property
    def tiles(self) -> tuple[EmbeddingSpan, ...]:
        """The spans to encode for this one, each a whole tile."""
        return self.parts or (self,)

    @property
    def tokens(self) -> int:
        return int(self.positions.shape[1])

    def at(self, start: int) -> npt.NDArray[np.int32]:
        """Return the positions of the span if it begins at `start`: int32 [1 or 4, tokens]."""
        positions: npt.NDArray[np.int32] = self.positions + np.int32(start)
        positions[3:] = 0  # the fourth section of M-RoPE is unused
        return positions

    def arranged(self, rows: Sequence[Embeddings]) -> Embeddings:
        """Return the embeddings of the span, given those of each of its `tiles`."""
        if self.order is None:
            return rows[0]
        every = np.concatenate(rows)
        if self.weights is None:
            return every[self.order]
        mixed = np.zeros((self.tokens, every.shape[1]), np.float32)
        for number in range(self.weights.shape[1]):  # one after the other: all at once would take as much memory again
            mixed += self.weights[:, number, None] * every[self.order[:, number]]
        return mixed


@dataclass
class PreparedImage:
    """A picture as the model will see it: texts, tokens and spans in prompt order, and the time that this took.

    Texts stay untokenized because they may form longer tokens with the text around the picture.

    A `Vision` makes it and knows how to `compute` its spans. `close` frees what the computation needs.
    """

    pieces: tuple[TextSpan | int | EmbeddingSpan, ...]
    original: tuple[int, int]  # (width, height)
    used: tuple[int, int]
    shrunk: bool
    high_size: tuple[int, int] | None = None  # what detail "high" uses, where that has more pixels
    view: View | None = None  # the part of the picture that is seen, where that is not the whole
    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    cache: EmbeddingCache = field(default_factory=EmbeddingCache, repr=False)
    tile_sources: Counter[Tier] = field(default_factory=Counter)  # the number of tiles from each tier
    _counted_until: float = 0.0  # time.perf_counter(): encoder time up to then is in `encode_ms`
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
        """Return embeddings that are in memory, else None. Does not block, and any thread may call."""
        rows = self.cache.recall(tile.key)
        if rows is not None:
            self._count_tile("memory")
        return rows

    def encode(self, span: EmbeddingSpan) -> Embeddings:
        """Return the embeddings of a span, float32 [span.tokens, n_embd_inp], from the cache or computed.

        Raises Aborted if the vision was cancelled, and EngineError.
        """
        if span.parts:
            return span.arranged([self.encode(part) for part in span.parts])
        rows, tier = self.cache.encode(span.key, span.tokens, lambda: self.content(span), lambda: self.compute(span))
        self._count_tile(tier)
        return rows

    def _count_tile(self, tier: Tier) -> None:
        with self._lock:
            self.tile_sources[tier] += 1

    def add_encode_time(self, began: float) -> None:
        """Add the time since `began`, a time.perf_counter(), to `encode_ms`.

        Time in which several tiles were encoded concurrently counts once.
        """
        with self._lock:
            now = time.perf_counter()
            self.encode_ms += 1000 * (now - max(began, self._counted_until))
            self._counted_until = now

    def content(self, span: EmbeddingSpan) -> str:
        """Return a key for what the encoder gets for a span: equal contents have equal embeddings."""
        raise NotImplementedError

    def compute(self, span: EmbeddingSpan) -> Embeddings:
        """Return the embeddings of a span from the encoder. Raises Aborted and EngineError."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what `compute` needs; here nothing."""


class Vision(Protocol):
    """Prepares pictures for one engine."""

    name: str
    image_token: str | None  # what the chat template writes for a picture; None: unknown
    min_batch: int  # the number of embeddings that the decoder must get in one batch; 0: any split is allowed
    cache: EmbeddingCache
    concurrent_tiles: int  # `VisionEncoder.concurrent_tiles` of the encoder
    shows_videos: bool  # the family was trained on videos, and the encoder takes as many frames as belong together

    def prepare(
        self, picture: Picture, detail: Detail, max_tokens: int | None, param: str, *, alone: bool = True
    ) -> PreparedImage:
        """Prepare a picture; `param` is the path of its part, for errors. Raises ImageError and RequestError.

        `alone`: it is the prompt's only picture.

        If the family is known, only the picture's size is read: there is no pixel work before the prompt fits.
        """
        ...

    def prepare_clip(self, clip: Clip, detail: Detail, max_tokens: int | None, param: str) -> PreparedImage:
        """Prepare a video, where `shows_videos`. `max_tokens` limits each tile. Raises as `prepare` does."""
        ...

    def cancel(self) -> None:
        """Make the running encode and all later ones raise Aborted until `allow`. May be called from any thread."""
        ...

    def allow(self) -> None:
        """Let encodes run again after `cancel`."""
        ...

    def close(self) -> None:
        """Free the encoder."""
        ...
