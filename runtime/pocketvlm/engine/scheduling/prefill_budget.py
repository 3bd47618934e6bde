"""How many prompt tokens to add to a decode step without slowing running streams noticeably."""

from __future__ import annotations

from pocketvlm.engine.speculative.draft_length import MAX_STEP_SLOWDOWN

_FIRST_ROWS = 4.0  # prompt rows in the first step
_MIN_ROWS = 0.5  # below 1: no row for now, after a single row took too long
_SMOOTHING = 0.1  # weight of a new step in the usual time
_OUTLIER = 1.5  # a step longer than this many times the usual one counts as this long
_GROWTH = 1.25  # after a step that was short enough
_RECOVERY = 1.005  # after a step without prompt rows: a row is tried again after some 140 steps
_MEASURE_EVERY = 16  # one of this many steps goes without prompt rows, because the usual time changes


class PrefillBudget:
    """The number of prompt rows to add to the tokens of running answers in a step.

    Without answers it is a whole batch. Otherwise the times of the last steps decide: half as many rows after a step
    that took too long, a quarter more after one that did not. A row costs a CPU nearly as much as an answer's token.
    """

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._steps = 0
        self._usual: float | None = None  # seconds of a step without prompt rows, with all threads
        self._rows = {False: _FIRST_ROWS, True: _FIRST_ROWS}  # by whether the background worker has cores

    def rows(self, answers: int, shared: bool, *, urgent: bool) -> int:
        """Return the rows allowed in the next step.

        0 where a single row would be noticed, unless a prompt is `urgent`: it waits for no tile of its own.
        """
        if not answers:
            return self._n_batch
        self._steps += 1
        if self._steps % _MEASURE_EVERY == 0:
            return 0
        return min(max(int(self._rows[shared]), urgent), self._n_batch - answers)

    def record(self, seconds: float, answers: int, rows: int, shared: bool) -> None:
        """Learn from a step that took `seconds` with `answers` tokens of answers and `rows` of prompts."""
        if not answers:
            return
        allowed = self._rows[shared]
        if not rows:
            if not shared:
                usual = seconds if self._usual is None else self._usual
                self._usual = usual + _SMOOTHING * (min(seconds, _OUTLIER * usual) - usual)
            if allowed < 1:
                self._rows[shared] = allowed * _RECOVERY
        elif self._usual is not None and seconds > MAX_STEP_SLOWDOWN * self._usual:
            self._rows[shared] = max(_MIN_ROWS, min(allowed, rows) / 2)
        elif rows >= int(allowed):
            self._rows[shared] = min(float(self._n_batch), max(1.0, allowed) * _GROWTH)
