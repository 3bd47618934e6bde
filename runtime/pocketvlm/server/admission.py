"""How many requests run and wait: a bounded queue, first come first served, that a client can leave."""

from __future__ import annotations

import asyncio
from collections import deque

from pocketvlm.errors import QueueFullError


class Admission:
    """On the event loop only. `running` and `waiting` are counts of now."""

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = slots
        self._queue = queue
        self._line: deque[asyncio.Future[None]] = deque()
        self._usual = 1.0  # seconds that a request runs, a moving average
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def enter(self) -> None:
        """Take a place among the running, for which `leave` must be called. Raises QueueFullError at once."""
        if self.running >= self._slots:
            await self._wait()
        else:
            self.running += 1

    def leave(self, took: float) -> None:
        """`took` seconds since it was entered."""
        self._usual += 0.2 * (took - self._usual)
        self._pass_on()

    async def _wait(self) -> None:
        if len(self._line) >= self._queue:
            retry = max(1.0, self._usual * (len(self._line) + 1) / self._slots)
            raise QueueFullError(f"{self.running} requests run and {len(self._line)} wait", retry_after=retry)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._line:
                self._line.remove(turn)
            elif not turn.cancelled():  # the place had just been given
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The place that is free now goes to the next in line."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
