"""The pictures of a request, to be encoded a tile at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from pocketvlm.engine.side import Task
from pocketvlm.native.context import Aborted
from pocketvlm.vision.encoder import Embeddings, Seen, Slot, Vision


@dataclass(eq=False)
class Encoding:
    """The tiles of one request that no cache knows, in prompt order: a task for the side thread.

    `started` is called before each tile with its number and that of all; `ended` with the tile and its embeddings, or
    what went wrong. Both on that thread. With `ahead`, tiles follow each other; without it, each is asked for: for a
    decoder that has all cores whenever no tile is encoded.
    """

    vision: Vision
    todo: deque[tuple[Slot, Seen]]
    started: Callable[[int, int], None]
    ended: Callable[[Slot, Embeddings | BaseException], None]
    released: Callable[[], None]  # called once, when the pictures are used no more
    ahead: bool
    first: bool = False
    dropped: bool = False
    total: int = field(init=False)
    _failed: bool = False
    _key: str = ""  # of the tile that is being encoded

    def __post_init__(self) -> None:
        self.total = len(self.todo)

    def run(self) -> Callable[[], None]:
        slot, seen = self.todo.popleft()
        self._key = slot.key
        self.started(self.total - len(self.todo) - 1, self.total)
        found = _encoded(slot, seen)
        self._failed = isinstance(found, BaseException)
        return partial(self.ended, slot, found)

    @property
    def again(self) -> bool:
        return self.ahead and bool(self.todo) and not self._failed

    def wanted(self, others: Iterable[Task], /) -> bool:
        """They wait for just the tile that is being encoded: from the cache, when it is done."""
        encodings = (other for other in others if isinstance(other, Encoding))
        return any(other.todo[0][0].key == self._key for other in encodings)

    def stop(self) -> None:
        self.vision.cancel()

    def allow(self) -> None:
        self.vision.allow()

    def left(self) -> None:
        self.released()


def _encoded(slot: Slot, seen: Seen) -> Embeddings | BaseException:
    try:
        return seen.encode(slot)
    except Aborted:
        return Aborted()
    except BaseException as error:  # whatever it is, it belongs to that request
        return error
