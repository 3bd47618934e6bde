"""An iterator that blocks, run on a thread; the event loop takes what it yields, in batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadStream(Generic[T]):
    """One wake-up of the loop fetches all that has come meanwhile: no token waits for another's way through it.

    What is not fetched waits here, so a client that reads slowly does not hold the engine up; an answer's length
    bounds it. The iterator is made, run and closed on one thread of its own.
    """

    def __init__(
        self,
        make: Callable[[Callable[[T], None]], Generator[T, None, None]],
        *,
        stop: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """`make` is given what puts an item before those that the iterator yields next, for when it is busy.

        `stop` and `ended` are called on the loop's thread, the first again and again until the iterator has ended.
        """
        self._make = make
        self._stop = stop
        self._tell_end = ended
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._ready: list[T] = []
        self._error: BaseException | None = None
        self._over = False
        self._wake = asyncio.Event()
        self._told = False  # that the loop has something to fetch
        self.cancelled = False
        self.ended = asyncio.Event()
        threading.Thread(target=self._run, name="pocketvlm-request", daemon=True).start()

    async def fetch(self) -> list[T]:
        """What came since the last call, at least one; empty at the end. Raises what the iterator raised."""
        while True:
            await self._wake.wait()
            with self._lock:
                self._wake.clear()
                self._told = False
                batch, self._ready = self._ready, []
                over = self._over
            if batch or over:
                if over:
                    self._wake.set()
                if not batch and self._error is not None:
                    raise self._error
                return batch

    async def cancel(self) -> None:
        """Stop the iterator, and wait until its thread has closed it. Harmless at its end."""
        self.cancelled = True
        while not self.ended.is_set():
            self._stop()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ended.wait(), 0.1)

    def _run(self) -> None:
        try:
            with closing(self._make(self._put)) as items:
                for item in items:
                    if self.cancelled:
                        break
                    self._put(item)
        except BaseException as error:  # raised again by who reads
            self._error = error
        self._loop_calls(self._end)

    def _put(self, item: T) -> None:
        with self._lock:
            self._ready.append(item)
            if self._told:
                return
            self._told = True
        self._loop_calls(self._wake.set)

    def _end(self) -> None:
        self._over = True
        self._wake.set()
        self.ended.set()
        self._tell_end()

    def _loop_calls(self, what: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what)
