"""How much of new prompts goes into a step, so that those who are already reading do not notice."""

from __future__ import annotations

PATIENCE = 2.4  # times the usual time between two tokens: what a step may take
_REST, _WITH_REST = 0.6, 2.2  # times it: what is left to those who work in spare time; the most, with the step before
_FIRST = 4.0  # rows of a prompt in a step
_NONE = 0.5  # where a single row took too long
_SMOOTH, _OUTLIER = 0.1, 1.5  # of the usual time; a step that took longer than so many times it tells little
_GROWTH = 1.25  # after a step that was short enough
_HOPE = 1.005  # after a step without rows: in some 140 steps, one is tried again
_LOOK = 16  # steps, of which one goes without rows: what is usual changes


class Pace:
    """Rows of prompts in a step beside the tokens of running answers.

    Without answers, as many as a batch takes. Else as many as the time of the last steps allows: halved after a step
    that took too long, a quarter more after one that did not. A row costs a CPU nearly as much as an answer's token.
    """

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._steps = 0
        self._usual: float | None = None  # seconds of a step without prompts, with all threads
        self._rows = {False: _FIRST, True: _FIRST}  # by whether the side thread has cores

    def rows(self, answers: int, shared: bool, *, urgent: bool) -> int:
        """0 where even one would be felt, unless a prompt is `urgent`: it waits for no tile of its own."""
        if not answers:
            return self._n_batch
        self._steps += 1
        if self._steps % _LOOK == 0:
            return 0
        return min(max(int(self._rows[shared]), urgent), self._n_batch - answers)

    def rest(self, last: float) -> float:
        """Seconds to leave to work in spare time, behind a step that took so many."""
        usual = self._usual or last
        return max(0.0, min(_REST * usual, _WITH_REST * usual - last))

    def note(self, seconds: float, answers: int, rows: int, shared: bool) -> None:
        """A step took `seconds`, with `answers` tokens of answers and `rows` of prompts."""
        if not answers:
            return
        allowed = self._rows[shared]
        if not rows:
            if not shared:
                usual = seconds if self._usual is None else self._usual
                self._usual = usual + _SMOOTH * (min(seconds, _OUTLIER * usual) - usual)
            if allowed < 1:
                self._rows[shared] = allowed * _HOPE
        elif self._usual is not None and seconds > PATIENCE * self._usual:
            self._rows[shared] = max(_NONE, min(allowed, rows) / 2)
        elif rows >= int(allowed):
            self._rows[shared] = min(float(self._n_batch), max(1.0, allowed) * _GROWTH)
