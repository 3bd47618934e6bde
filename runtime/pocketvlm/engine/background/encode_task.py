"""The background task that encodes the tiles of one request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Thread

from pocketvlm.engine.background.worker import BackgroundTask
from pocketvlm.native.context import Aborted
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage, Vision

Tile = tuple[EmbeddingSpan, PreparedImage]


@dataclass(frozen=True)
class TileStarted:
    """The tile number `done`, from 0, of `total` is about to be encoded."""

    done: int
    total: int


@dataclass(frozen=True, eq=False)
class TileEncoded:
    """The embeddings of a tile, float32 [tokens, n_embd_inp], or the error that prevented them."""

    tile: EmbeddingSpan
    result: Embeddings | BaseException


@dataclass(frozen=True)
class ImagesReleased:
    """The task was dropped and no longer uses the request's images."""


EncodeUpdate = TileStarted | TileEncoded | ImagesReleased


@dataclass(eq=False)
class EncodeTask:
    """Encodes the `tiles` of one request that are in no cache, in prompt order.

    `report` is called on the worker's thread. With `ahead`, tiles follow each other; without it each is asked for,
    because decoder and encoder take turns with all cores. With `ahead`, two tiles are encoded at a time while `alone`
    returns True: while no answer needs the decoder's cores.
    """

    vision: Vision
    tiles: deque[Tile]
    report: Callable[[EncodeUpdate], None]
    ahead: bool
    alone: Callable[[], bool]
    urgent: bool = False
    dropped: bool = False
    total: int = field(init=False)
    _failed: bool = False
    _encoding_keys: frozenset[str] = frozenset()
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.total = len(self.tiles)

    def run(self) -> Callable[[], None]:
        tile = self._next_tile()
        if self.ahead and self.vision.concurrent_tiles > 1 and self.alone() and self._next_differs(tile):
            encoded = self._encode_two(tile, self._next_tile())
        else:
            encoded = [self._encode(tile)]
        self._failed = any(isinstance(one.result, BaseException) for one in encoded)
        return partial(self._report_all, encoded)

    def _next_tile(self) -> Tile:
        tile = self.tiles.popleft()
        with self._lock:
            self._encoding_keys |= {tile[0].key}
        self.report(TileStarted(self.total - len(self.tiles) - 1, self.total))
        return tile

    def _next_differs(self, tile: Tile) -> bool:
        """Whether there is a next tile with other content. Equal tiles, such as blank margins, come from the cache."""
        if not self.tiles:
            return False
        (span, image), (next_span, next_image) = tile, self.tiles[0]
        try:
            return image.content(span) != next_image.content(next_span)
        except Exception:  # reported when the tile is encoded
            return False

    def _encode_two(self, tile: Tile, other: Tile) -> list[TileEncoded]:
        """Encode `other` on a thread of its own; one after the other where the system gives no thread."""
        results: list[TileEncoded] = []
        thread = Thread(target=lambda: results.append(self._encode(other)), name="pocketvlm-encode", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return [self._encode(tile), self._encode(other)]
        results_here = self._encode(tile)
        thread.join()
        return [results_here, *results]

    def _encode(self, tile: Tile) -> TileEncoded:
        span, image = tile
        try:
            return TileEncoded(span, image.encode(span))
        except Aborted:
            return TileEncoded(span, Aborted())
        except BaseException as error:  # the request fails with it
            return TileEncoded(span, error)
        finally:
            with self._lock:
                self._encoding_keys -= {span.key}

    def _report_all(self, encoded: list[TileEncoded]) -> None:
        for one in encoded:
            self.report(one)

    @property
    def repeats(self) -> bool:
        return self.ahead and bool(self.tiles) and not self._failed

    def needed_by(self, others: Iterable[BackgroundTask], /) -> bool:
        """Whether others wait for a tile that is being encoded: they get it from the cache."""
        waiting = (other for other in others if isinstance(other, EncodeTask))
        return any(other.tiles[0][0].key in self._encoding_keys for other in waiting)

    def stop(self) -> None:
        self.vision.cancel()

    def allow(self) -> None:
        self.vision.allow()

    def release(self) -> None:
        self.report(ImagesReleased())
