"""Limit how many requests run and wait: a bounded queue, first come first served, that a client can leave."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple

from pocketvlm.errors import QueueFullError


class _Waiter(NamedTuple):
    turn: asyncio.Future[None]
    arrived: float  # of time.monotonic


class Admission:
    """At most `slots` requests run and `queue` wait. For the event loop only.

    While it is closed, requests wait: all but those that waited already when it was closed.
    """

    def __init__(self, slots: int, queue: int, *, opened: bool = True) -> None:
        self._slots = slots
        self._queue = queue
        self._waiters: deque[_Waiter] = deque()
        self._mean_seconds = 1.0  # moving average of how long a request runs
        self._opened = opened
        self._before_closing = 0  # waiters, the first ones, that still begin while it is closed
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def oldest(self) -> float | None:
        """The time (`time.monotonic`) at which the first of the waiting requests came."""
        return self._waiters[0].arrived if self._waiters else None

    @property
    def is_open(self) -> bool:
        return self._opened

    def open(self) -> None:
        """Let all requests begin, as slots become free."""
        self._opened = True
        self._before_closing = 0
        self._admit()

    def close(self) -> None:
        """Let those that wait now still begin, and later ones wait. Does nothing while it is closed."""
        if self._opened:
            self._opened = False
            self._before_closing = len(self._waiters)

    def fail(self, error: Exception) -> None:
        """Raise `error` in all requests that wait."""
        waiters, self._waiters, self._before_closing = self._waiters, deque(), 0
        for waiter in waiters:
            if not waiter.turn.done():
                waiter.turn.set_exception(error)

    async def enter(self) -> None:
        """Wait for a slot; call `leave` to free it. Raises QueueFullError at once where the queue is full."""
        if self._opened and self.running < self._slots:
            self.running += 1
        else:
            await self._wait()

    def leave(self, seconds: float) -> None:
        """Free a slot that was taken `seconds` ago."""
        self._mean_seconds += 0.2 * (seconds - self._mean_seconds)
        self._free()

    async def _wait(self) -> None:
        if len(self._waiters) >= self._queue:
            retry = max(1.0, self._mean_seconds * (len(self._waiters) + 1) / self._slots)
            raise QueueFullError(
                f"{self.running} requests run and {len(self._waiters)} wait; try again later", retry_after=retry
            )
        waiter = _Waiter(asyncio.get_running_loop().create_future(), time.monotonic())
        self._waiters.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._remove(waiter)
            elif not waiter.turn.cancelled() and waiter.turn.exception() is None:  # it had just got the slot
                self._free()
            raise

    def _remove(self, waiter: _Waiter) -> None:
        if self._waiters.index(waiter) < self._before_closing:
            self._before_closing -= 1
        self._waiters.remove(waiter)

    def _free(self) -> None:
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        """Give free slots to the first of the requests that may begin."""
        while self._waiters and self.running < self._slots and (self._opened or self._before_closing):
            self._before_closing = max(0, self._before_closing - 1)
            turn = self._waiters.popleft().turn
            if not turn.done():
                turn.set_result(None)
                self.running += 1
