"""The pictures of a request, to be encoded tile by tile, or by two where cores are left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

from pocketvlm.engine.helper import Helper
from pocketvlm.engine.side import Task
from pocketvlm.native.context import Aborted
from pocketvlm.vision.encoder import Embeddings, Seen, Slot, Vision

_MOST = 6  # tiles in a piece of work
_PATIENCE, _LEAST = 2.0, 1.0  # times what a tile takes, and seconds: how long to wait for one whose thread gets no core

Tile = tuple[Slot, Seen]
Found = Embeddings | BaseException


@dataclass(eq=False)
class Encoding:
    """The tiles of one request that no cache knows, in prompt order: a task for the side thread.

    `started` is called before each tile with its number and that of all; `ended` with the tile and its embeddings, or
    what went wrong. Both on that thread. With `ahead`, tiles follow each other, and two may go at a time while the
    request is `alone`; without it, each is asked for: for a decoder that has all cores whenever no tile is encoded.

    With `spare`, a second tile goes beside the others also where it is not alone, on a thread that runs only where
    nobody else wants to. Until that is done others follow, in the same piece of work, unless the side thread is
    `wanted_by_others`. `late` is called where it got no core: the tile is to do again.
    """

    vision: Vision
    todo: deque[Tile]
    started: Callable[[int, int], None]
    ended: Callable[[Slot, Found], None]
    released: Callable[[], None]  # called once, when the pictures are used no more
    ahead: bool
    alone: Callable[[], bool]
    spare: Callable[[], bool]
    wanted_by_others: Callable[[], bool]
    late: Callable[[], None]
    first: bool = False
    dropped: bool = False
    helper: Helper[Found] | None = None  # of a tile that waits for time that nobody else wants
    total: int = field(init=False)
    _failed: bool = False
    _keys: frozenset[str] = frozenset()  # of the tiles that are being encoded
    _changing: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.total = len(self.todo)

    def run(self) -> Callable[[], None]:
        alone = self.alone()
        spare = len(self.todo) < self.total and self.spare()  # reading the picture has made its pauses by then
        tile = self._take()
        if not (self.ahead and self.vision.together > 1 and (alone or spare) and self._differs(tile)):
            found = [(tile, self._encode(tile))]
        else:
            found = self._two(tile, self._take(), idle=not alone)
        self._failed = any(isinstance(rows, BaseException) for _, rows in found)
        return partial(self._report, found)

    def _take(self) -> Tile:
        tile = self.todo.popleft()
        with self._changing:
            self._keys |= {tile[0].key}
        self.started(self.total - len(self.todo) - 1, self.total)
        return tile

    def _differs(self, tile: Tile) -> bool:
        """Tiles that are alike, as blank margins are, go one after the other: the second comes from the cache."""
        if not self.todo:
            return False
        (slot, seen), (next_slot, next_seen) = tile, self.todo[0]
        try:
            return seen.content(slot) != next_seen.content(next_slot)
        except Exception:  # told when it is encoded
            return False

    def _two(self, tile: Tile, other: Tile, *, idle: bool) -> list[tuple[Tile, Found]]:
        """The other on a thread of its own; where the system gives none, one after the other."""
        try:
            helper = Helper(partial(self._encode, other), idle=idle)
        except RuntimeError:
            return [(one, self._encode(one)) for one in (tile, other)]
        if idle:
            return self._helped(tile, other, helper)
        return [(tile, self._encode(tile)), (other, helper.result())]

    def _helped(self, tile: Tile, other: Tile, helper: Helper[Found]) -> list[tuple[Tile, Found]]:
        """The other in spare time; meanwhile as many as there is time for."""
        self.helper = helper
        found: list[tuple[Tile, Found]] = []
        longest = 0.0
        while True:
            began = time.perf_counter()
            found.append((tile, self._encode(tile)))
            longest = max(longest, time.perf_counter() - began)
            failed = isinstance(found[-1][1], BaseException)
            over = len(found) == _MOST or self.dropped or self.wanted_by_others() or not helper.running
            if failed or over or not self._differs(other):
                break
            tile = self._take()
        self.helper = None
        helper.free()
        unwanted = failed or not helper.ends_within(max(_LEAST, _PATIENCE * longest))
        if unwanted:
            self.vision.cancel()
        rows = helper.result()
        if unwanted:
            self.vision.allow()  # before `dropped` is looked at: who drops it says so first
            if not failed and not self.dropped and isinstance(rows, Aborted):
                self.late()
                self.todo.appendleft(other)
                return found
        return [*found, (other, rows)]

    def _encode(self, tile: Tile) -> Found:
        try:
            return _encoded(tile)
        finally:
            with self._changing:
                self._keys -= {tile[0].key}

    def _report(self, found: list[tuple[Tile, Found]]) -> None:
        for (slot, _), rows in found:
            self.ended(slot, rows)

    @property
    def again(self) -> bool:
        return self.ahead and bool(self.todo) and not self._failed

    def wanted(self, others: Iterable[Task], /) -> bool:
        """They wait for a tile that is being encoded: from the cache, when it is done."""
        encodings = (other for other in others if isinstance(other, Encoding))
        return any(other.todo[0][0].key in self._keys for other in encodings)

    def stop(self) -> None:
        self.vision.cancel()

    def allow(self) -> None:
        self.vision.allow()

    def left(self) -> None:
        self.released()


def _encoded(tile: Tile) -> Found:
    slot, seen = tile
    try:
        return seen.encode(slot)
    except Aborted:
        return Aborted()
    except BaseException as error:  # whatever it is, it belongs to that request
        return error
