"""Limit how many requests run and wait: a bounded queue, first come first served, that a client can leave."""

from __future__ import annotations

import asyncio
from collections import deque

from pocketvlm.errors import QueueFullError


class Admission:
    """At most `slots` requests run and `queue` wait. For the event loop only."""

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = slots
        self._queue = queue
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._mean_seconds = 1.0  # moving average of how long a request runs
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def enter(self) -> None:
        """Wait for a slot; call `leave` to free it. Raises QueueFullError at once where the queue is full."""
        if self.running >= self._slots:
            await self._wait()
        else:
            self.running += 1

    def leave(self, seconds: float) -> None:
        """Free a slot that was taken `seconds` ago."""
        self._mean_seconds += 0.2 * (seconds - self._mean_seconds)
        self._pass_on()

    async def _wait(self) -> None:
        if len(self._waiters) >= self._queue:
            retry = max(1.0, self._mean_seconds * (len(self._waiters) + 1) / self._slots)
            raise QueueFullError(
                f"{self.running} requests run and {len(self._waiters)} wait; try again later", retry_after=retry
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiters:
                self._waiters.remove(turn)
            elif not turn.cancelled():  # it had just got the slot
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the free slot to the next request in the queue."""
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
