"""How many threads evaluate a step: fewer while other programs compute, judged by the times of steps.

The threads of a step wait for each other many times. One of them that shares its core with another program makes all
of them wait, so fewer threads may be faster. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_WINDOW = 0.1  # seconds of steps after which it is judged whether other programs take cores
_USUAL_LOSS, _USUAL_THREAD_LOSS = 0.2, 0.01  # cores that steps do not get where nothing else runs: in all, per thread
_PROGRAM_LOSS = 0.5  # of a core, that a thread loses to a program on the same core
_BLOCK_STEPS, _BLOCK_SECONDS = 2, 0.05  # a trial has at least so many steps, for so long, with each of two numbers
_BETTER = 0.95  # of the time with the present number: a number that takes less is chosen
_STALE = 1.0  # seconds without a step, after which a trial begins again
_PAUSE, _LONGEST_PAUSE = 1.0, 8.0  # seconds between two trials in one direction
_COST = 0.05  # of the time may be lost by trials of more threads


def larger_counts(count: int, most: int) -> list[int]:
    """Return the numbers of threads that are tried one after the other, to return from `count` to `most`."""
    rungs = (2, most // 4, most // 2, most * 3 // 4, most - 2, most - 1, most)
    return sorted({rung for rung in rungs if count < rung <= most})


@dataclass
class _Trial:
    """Steps with the present number of threads, then steps with another, all with as many `rows`."""

    counts: tuple[int, int]
    rows: int | None = None
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def count(self) -> int:
        return self.counts[self._block]

    @property
    def done(self) -> bool:
        return self._is_full(1)

    @property
    def means(self) -> tuple[float, float]:
        first, second = (sum(block) / len(block) for block in self.seconds)
        return first, second

    @property
    def _block(self) -> int:
        return int(self._is_full(0))

    def _is_full(self, index: int) -> bool:
        block = self.seconds[index]
        full = len(block) >= _BLOCK_STEPS and sum(block) >= _BLOCK_SECONDS
        return full or (index == 1 and sum(block) > 2 * sum(self.seconds[0]))

    def record(self, rows: int, seconds: float) -> None:
        if rows != self.rows:
            self.rows = rows
            for block in self.seconds:
                block.clear()
        self.seconds[self._block].append(seconds)


class ThreadCountPolicy:
    """Finds the number of threads that is fastest now, of at most `most`.

    Where steps get less of the processor than their threads could use, a smaller number is tried, by how many programs
    seem to take cores. With fewer than all threads a larger one is tried about once a second. A trial times a few steps
    with the present number and with the other.

    `others` threads of this process compute at the same time.
    """

    def __init__(self, most: int, *, others: int = 0) -> None:
        self.count = self._most = most
        self._others = others
        self._trial: _Trial | None = None
        self._last = 0.0  # when the last step ended
        self._seconds = self._computed = 0.0  # of the steps in this window
        self._programs = 0  # that seem to take cores
        self._larger_at = self._smaller_at = 0.0  # the earliest times of the next trials
        self._pause = _PAUSE  # after the next trial of a smaller number, if it fails

    @property
    def compares(self) -> bool:
        """Whether the next step is part of a trial: it should be like other steps, without drafts."""
        return self._trial is not None

    def next_count(self, now: float) -> int:
        """Return the number of threads for the next step. `now`: seconds."""
        if self._trial is not None and now - self._last > _STALE:
            self._trial = None
        if self._trial is None:
            if self._programs and self.count > 1 and now >= self._smaller_at:
                self._trial = _Trial((self.count, max(1, self.count - self._programs)))
            elif self.count < self._most and now >= self._larger_at:
                self._trial = _Trial((self.count, larger_counts(self.count, self._most)[0]))
        return self._trial.count if self._trial else self.count

    def record(self, rows: int, seconds: float, computed: float, now: float) -> None:
        """Learn from a step that ended `now`. It took `seconds`, and `computed` seconds of processor time."""
        self._last = now
        if self._trial is not None:
            self._trial.record(rows, seconds)
            if self._trial.done:
                self._decide(self._trial, now)
            return
        self._seconds += seconds
        self._computed += computed
        if self._seconds >= _WINDOW:
            lost = self.count + self._others - self._computed / self._seconds
            usual = _USUAL_LOSS + _USUAL_THREAD_LOSS * self.count
            self._begin_window(max(1, round(lost / _PROGRAM_LOSS)) if lost > usual else 0)

    def _begin_window(self, programs: int) -> None:
        self._programs = programs
        self._seconds = self._computed = 0.0

    def _decide(self, trial: _Trial, now: float) -> None:
        present, other = trial.counts
        mean, other_mean = trial.means
        self._trial = None
        self._begin_window(0)
        if other_mean < _BETTER * mean:
            self.count, self._pause = other, _PAUSE
            self._smaller_at, self._larger_at = now, now + (_PAUSE if other < present else 0)
        elif other < present:
            self._smaller_at = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            lost = (other_mean - mean) * len(trial.seconds[1])
            self._larger_at = now + max(_PAUSE, lost / _COST)
