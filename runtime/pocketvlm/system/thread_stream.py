"""Run a blocking iterator on a thread; the event loop fetches what it yields, in batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadStream(Generic[T]):
    """One wake-up of the loop fetches everything that is ready, so no token waits for an earlier one to be sent.

    Items that are not fetched yet are kept here, so a slow client does not hold up the engine; the length of an answer
    bounds them. The iterator is created, run and closed on one thread of its own.
    """

    def __init__(
        self,
        make: Callable[[Callable[[T], None]], Generator[T, None, None]],
        *,
        stop: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """`make` gets a function that adds an item while the iterator is busy, before the items that it yields next.

        `stop` and `ended` are called on the loop's thread, `stop` repeatedly until the iterator has ended.
        """
        self._make = make
        self._stop = stop
        self._on_end = ended
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._ready: list[T] = []
        self._error: BaseException | None = None
        self._over = False
        self._wake = asyncio.Event()
        self._notified = False  # whether the loop knows that there are items
        self.cancelled = False
        self.ended = asyncio.Event()
        threading.Thread(target=self._run, name="pocketvlm-request", daemon=True).start()

    async def fetch(self) -> list[T]:
        """Return the items since the last call, at least one; none at the end. Raises what the iterator raised."""
        while True:
            await self._wake.wait()
            with self._lock:
                self._wake.clear()
                self._notified = False
                batch, self._ready = self._ready, []
                over = self._over
            if batch or over:
                if over:
                    self._wake.set()
                if not batch and self._error is not None:
                    raise self._error
                return batch

    async def cancel(self) -> None:
        """Stop the iterator and wait until its thread has closed it. Does nothing after its end."""
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
        except BaseException as error:  # `fetch` raises it
            self._error = error
        self._call_on_loop(self._end)

    def _put(self, item: T) -> None:
        with self._lock:
            self._ready.append(item)
            if self._notified:
                return
            self._notified = True
        self._call_on_loop(self._wake.set)

    def _end(self) -> None:
        self._over = True
        self._wake.set()
        self.ended.set()
        self._on_end()

    def _call_on_loop(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: no task waits any more
            self._loop.call_soon_threadsafe(function)
