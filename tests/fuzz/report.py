"""What people see: a line every few seconds, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable

from fuzz.folder import Found, Progress
from fuzz.outcomes import CLEAN, OUTCOMES

_EVERY = 5.0  # seconds
_WIDTH = 10


class Lines:
    """Print the progress, but not too often."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def show(self, progress: dict[str, Progress]) -> None:
        now = time.monotonic()
        if now - self._last < _EVERY:
            return
        self._last = now
        done = (f"{kind} {of.counts.total()}" for kind, of in progress.items() if of.counts)
        bad = sum(count for of in progress.values() for name, count in of.counts.items() if name not in CLEAN)
        minutes, seconds = divmod(int(now - self._began), 60)
        print(f"{minutes}:{seconds:02} {', '.join(done)}; not clean: {bad}", flush=True)


def table(progress: dict[str, Progress]) -> str:
    rows = [["", "cases", *OUTCOMES, "slowest", "case", "largest"]]
    for kind, of in progress.items():
        counts = [f"{of.counts[name] or '-'}" for name in OUTCOMES]
        rows.append(
            [
                kind,
                f"{of.counts.total()}",
                *counts,
                f"{of.slowest:.1f} s",
                f"#{of.slowest_case}",
                f"{of.largest >> 20} MB",
            ]
        )
    return "\n".join(f"{row[0]:12}" + "".join(f"{cell:>{_WIDTH}}" for cell in row[1:]) for row in rows)


def listing(found: Iterable[Found]) -> str:
    return "\n".join(f"{one.verdict.outcome}: {one.verdict.where or '?'}\n  {one.path}" for one in found)
