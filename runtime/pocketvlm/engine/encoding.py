"""Pictures are encoded on a thread of their own, a tile at a time, the requests taking turns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pocketvlm.native.context import Aborted
from pocketvlm.vision.encoder import Embeddings, Seen, Slot, Vision


@dataclass(eq=False)
class Encoding:
    """The tiles of one request that no cache knows, in prompt order.

    `started` is called before each tile with its number and that of all; `ended` with the tile and its embeddings, or
    what went wrong. Both on the encoding thread.
    """

    todo: deque[tuple[Slot, Seen]]
    started: Callable[[int, int], None]
    ended: Callable[[Slot, Embeddings | BaseException], None]
    released: Callable[[], None]  # called once, when the pictures are used no more
    total: int = field(init=False)
    dropped: bool = False

    def __post_init__(self) -> None:
        self.total = len(self.todo)


class EncodingThread:
    """With `ahead`, tiles follow each other at once; without it, each is asked for.

    The latter is for a decoder that has all cores whenever no tile is encoded.
    """

    def __init__(self, vision: Vision, *, ahead: bool) -> None:
        self._vision = vision
        self._ahead = ahead
        self._turns: deque[Encoding] = deque()
        self._current: Encoding | None = None
        self._key = ""  # of the tile that is being encoded
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pocketvlm-encoder", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Requests that have a tile to encode now."""
        return len(self._turns) + (self._current is not None)

    def ask(self, encoding: Encoding) -> None:
        """Encode the next tile, or all."""
        with self._changed:
            if encoding.todo and encoding is not self._current and encoding not in self._turns:
                self._turns.append(encoding)
                self._changed.notify()

    def drop(self, encoding: Encoding) -> None:
        """The request is over: stop its tile, encode no other, and release its pictures."""
        with self._changed:
            if encoding.dropped:
                return
            encoding.dropped = True
            if encoding in self._turns:
                self._turns.remove(encoding)
            if self._current is not None and self._current.dropped and not self._shared():
                self._vision.cancel()
            if encoding is self._current:
                return  # released by the thread
        encoding.released()

    def _shared(self) -> bool:
        """Whether somebody waits for just the tile that is being encoded: from the cache, when it is done."""
        return any(waiting.todo[0][0].key == self._key for waiting in self._turns)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if self._current is not None:
                self._vision.cancel()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """One tile; False when closed. A call of its own, so that a thread that waits holds nobody's picture."""
        with self._changed:
            while not self._turns and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            encoding = self._current = self._turns.popleft()
            slot, seen = encoding.todo.popleft()
            self._key = slot.key
        encoding.started(encoding.total - len(encoding.todo) - 1, encoding.total)
        found = _encoded(slot, seen)
        with self._changed:
            self._current = None
            self._vision.allow()
            dropped = encoding.dropped
            if self._ahead and encoding.todo and not dropped and not isinstance(found, BaseException):
                self._turns.append(encoding)
        if dropped:
            encoding.released()
        else:
            encoding.ended(slot, found)
        return True


def _encoded(slot: Slot, seen: Seen) -> Embeddings | BaseException:
    try:
        return seen.encode(slot)
    except Aborted:
        return Aborted()
    except BaseException as error:  # whatever it is, it belongs to that request
        return error
