"""The pictures of a request, to be encoded tile by tile, or by two while nobody needs the other cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import Thread

from pocketvlm.engine.side import Task
from pocketvlm.native.context import Aborted
from pocketvlm.vision.encoder import Embeddings, Seen, Slot, Vision


@dataclass(eq=False)
class Encoding:
    """The tiles of one request that no cache knows, in prompt order: a task for the side thread.

    `started` is called before each tile with its number and that of all; `ended` with the tile and its embeddings, or
    what went wrong. Both on that thread. With `ahead`, tiles follow each other, and two may go at a time while the
    request is `alone`; without it, each is asked for: for a decoder that has all cores whenever no tile is encoded.
    """

    vision: Vision
    todo: deque[tuple[Slot, Seen]]
    started: Callable[[int, int], None]
    ended: Callable[[Slot, Embeddings | BaseException], None]
    released: Callable[[], None]  # called once, when the pictures are used no more
    ahead: bool
    alone: Callable[[], bool]
    first: bool = False
    dropped: bool = False
    total: int = field(init=False)
    _failed: bool = False
    _keys: frozenset[str] = frozenset()  # of the tiles that are being encoded

    def __post_init__(self) -> None:
        self.total = len(self.todo)

    def run(self) -> Callable[[], None]:
        tiles = [self.todo.popleft()]
        if self.ahead and self.vision.together > 1 and self.todo and self.alone() and _differ(tiles[0], self.todo[0]):
            tiles.append(self.todo.popleft())
        self._keys = frozenset(slot.key for slot, _ in tiles)
        for number in range(len(tiles), 0, -1):
            self.started(self.total - len(self.todo) - number, self.total)
        found = _at_once(*tiles) if len(tiles) > 1 else [_encoded(tiles[0])]
        self._failed = any(isinstance(rows, BaseException) for rows in found)
        return partial(self._report, [slot for slot, _ in tiles], found)

    def _report(self, slots: list[Slot], found: list[Embeddings | BaseException]) -> None:
        for slot, rows in zip(slots, found, strict=True):
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


def _differ(one: tuple[Slot, Seen], other: tuple[Slot, Seen]) -> bool:
    """Tiles that are alike, as blank margins are, go one after the other: the second comes from the cache."""
    try:
        return one[1].content(one[0]) != other[1].content(other[0])
    except Exception:  # told when it is encoded
        return False


def _at_once(one: tuple[Slot, Seen], other: tuple[Slot, Seen]) -> list[Embeddings | BaseException]:
    """The other on a thread of its own; where the system gives none, one after the other."""
    found: list[Embeddings | BaseException] = []
    thread = Thread(target=lambda: found.append(_encoded(other)), name="pocketvlm-tile", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return [_encoded(one), _encoded(other)]
    found.insert(0, _encoded(one))
    thread.join()
    return found


def _encoded(tile: tuple[Slot, Seen]) -> Embeddings | BaseException:
    slot, seen = tile
    try:
        return seen.encode(slot)
    except Aborted:
        return Aborted()
    except BaseException as error:  # whatever it is, it belongs to that request
        return error
