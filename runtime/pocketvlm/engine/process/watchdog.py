"""Whether a process makes progress, judged by checking it at intervals."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_SILENCE = 60.0  # seconds until a process must have answered
_CHECKS = 10  # in that time


class Watchdog:
    """Call `look` every `interval` seconds and ask the process for its progress; `hear` gets each answer.

    The watchdog counts checks, not seconds: while this process sleeps too, because a lid is closed or a container is
    frozen, no check is missed. `stuck_after` is how long one piece of work may take, in seconds.
    """

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._max_silence = min(_MAX_SILENCE, stuck_after)
        self.interval = self._max_silence / _CHECKS
        self._heard = True  # since the last check
        self._progress: tuple[int | None, ...] = ()
        self._last_progress: tuple[int | None, ...] = ()  # at the last check
        self._silent_checks = 0
        self._unchanged_checks: list[int] = []  # for each thread of the process

    def hear(self, progress: Sequence[int | None]) -> None:
        """Take an answer: for each thread the number of its work, None where it waits. From any thread."""
        self._progress = tuple(progress)
        self._heard = True

    def look(self) -> str:
        """Return why the process must be killed, as the end of a sentence about it; "" while it makes progress."""
        self._silent_checks = 0 if self._heard else self._silent_checks + 1
        self._heard = False
        progress, last = self._progress, self._last_progress
        counts = [*self._unchanged_checks, *[0] * len(progress)]
        self._unchanged_checks = [
            count + 1 if number is not None and number in last[thread : thread + 1] else 0
            for thread, (number, count) in enumerate(zip(progress, counts, strict=False))
        ]
        self._last_progress = progress
        if self._silent_checks >= _CHECKS:
            return f"because it did not answer for {self._max_silence:g} s"
        if any(count * self.interval >= self._stuck_after for count in self._unchanged_checks):
            return f"because one step of its work took more than {self._stuck_after:g} s"
        return ""
