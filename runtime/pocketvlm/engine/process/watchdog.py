"""Whether a process still gets on, judged by looking at it now and then."""

from __future__ import annotations

from collections.abc import Sequence

_SILENT = 60.0  # seconds, at most, for a process to answer
_LOOKS = 10  # in that time


class Watchdog:
    """To be looked at each `interval` seconds, and asked each time; `hear` takes the answers, on any thread.

    Looks are counted, not seconds: when we slept ourselves, a lid closed or a container frozen, none was missed.
    `stuck_after` is how long one piece of work may take, in seconds.
    """

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._silent_after = min(_SILENT, stuck_after)
        self.interval = self._silent_after / _LOOKS
        self._heard = True
        self._doing: tuple[int | None, ...] = ()
        self._before: tuple[int | None, ...] = ()
        self._quiet = 0
        self._same: list[int] = []

    def hear(self, doing: Sequence[int | None]) -> None:
        """An answer: the number of what each thread works on, None where it waits."""
        self._doing = tuple(doing)
        self._heard = True

    def look(self) -> str:
        """Why it must be ended, "" as long as it gets on."""
        self._quiet = 0 if self._heard else self._quiet + 1
        self._heard = False
        doing, before = self._doing, self._before
        same = [*self._same, *[0] * len(doing)]
        self._same = [
            count + 1 if number is not None and number in before[place : place + 1] else 0
            for place, (number, count) in enumerate(zip(doing, same, strict=False))
        ]
        self._before = doing
        if self._quiet >= _LOOKS:
            return f"as it did not answer for {self._silent_after:g} s"
        if any(count * self.interval >= self._stuck_after for count in self._same):
            return f"as one step of its work took more than {self._stuck_after:g} s"
        return ""
