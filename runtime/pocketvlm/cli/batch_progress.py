"""How far a batch is: a bar in terminals, a line a minute elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pocketvlm.cli.progress_bars import shows_bars

_SECONDS_BETWEEN_LINES = 60.0


class BatchProgress:
    """Counts answers from `start` on. `done` of `total` were there before."""

    def __init__(self, total: int, done: int, console: Console) -> None:
        self._console = console
        self._has_bar = shows_bars(console)
        self._total, self._before = total, done
        self._now = 0
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True)
        self._task = self._bar.add_task("loading", total=total, completed=done)

    def start(self) -> None:
        """Begin to measure: the model is loaded."""
        self._started = self._last_line = time.monotonic()
        self._bar.update(self._task, description=self._status())

    def advance(self) -> None:
        self._now += 1
        self._bar.update(self._task, advance=1, description=self._status())
        if not self._has_bar and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(self._status(), highlight=False)

    def total(self) -> str:
        """Return how many were asked in which time, and how fast that was."""
        seconds = time.monotonic() - self._started
        return f"{self._now:,} asked in {duration(seconds)}, {rate(self._now / max(seconds, 1e-9))}"

    def _status(self) -> str:
        seconds = time.monotonic() - self._started
        done = f"{self._before + self._now:,} of {self._total:,} asked"
        if not self._now:
            return done
        left = (self._total - self._before - self._now) * seconds / self._now
        return f"{done}, {rate(self._now / max(seconds, 1e-9))}, {duration(left)} left"

    def __enter__(self) -> BatchProgress:
        if self._has_bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_bar:
            self._bar.stop()


def rate(per_second: float) -> str:
    """Return a rate in the unit in which it is a number that people can picture."""
    for seconds, unit in ((1, "a second"), (60, "a minute"), (3600, "an hour")):
        if per_second * seconds >= 1 or unit == "an hour":
            return f"{per_second * seconds:,.1f} {unit}"
    raise AssertionError


def duration(seconds: float) -> str:
    """Return a time as minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
