"""How much of new prompts goes into a step, so that those who are already reading do not notice."""

from __future__ import annotations

_PATIENCE = 2.4  # times the usual time between two tokens: what a step may take
_FIRST = 4.0  # rows of a prompt in a step
_NONE = 0.5  # where a single row took too long
_SMOOTH = 0.1
_GROWTH = 1.25  # after a step that was short enough
_HOPE = 1.005  # after a step without rows: in some 140 steps, one is tried again


class Pace:
    """Rows of prompts in a step beside the tokens of running answers.

    Without answers, as many as a batch takes. Else as many as the time of the last steps allows: halved after a step
    that took too long, a quarter more after one that did not. A row costs a CPU nearly as much as an answer's token.
    """

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._usual: float | None = None  # seconds of a step without prompts, with all threads
        self._rows = {False: _FIRST, True: _FIRST}  # by whether a tile is being encoded

    def rows(self, answers: int, encoding: bool) -> int:
        """0 beside an encode means that even one would be felt."""
        if not answers:
            return self._n_batch
        return min(int(self._rows[encoding]), self._n_batch - answers)

    def note(self, seconds: float, answers: int, rows: int, encoding: bool) -> None:
        """A step took `seconds`, with `answers` tokens of answers and `rows` of prompts."""
        if not answers:
            return
        allowed = self._rows[encoding]
        if not rows:
            if not encoding:
                self._usual = seconds if self._usual is None else self._usual + _SMOOTH * (seconds - self._usual)
            if allowed < 1:
                self._rows[encoding] = allowed * _HOPE
        elif self._usual is not None and seconds > _PATIENCE * self._usual:
            self._rows[encoding] = max(_NONE, min(allowed, rows) / 2)
        elif rows >= int(allowed):
            self._rows[encoding] = min(float(self._n_batch), max(1.0, allowed) * _GROWTH)
