"""How much of new prompts goes into a step, so that those who are already reading do not notice."""

from __future__ import annotations

_PATIENCE = 2.4  # times the usual time between two tokens: what a step may take
_FIRST, _LEAST = 16, 2  # rows of a prompt in a step
_SMOOTH = 0.1


class Pace:
    """Rows of prompts in a step beside `n` tokens of running answers.

    Without answers, as many as a batch takes. Else as many as the measured time of the last steps allows: halved
    after a step that took too long, a quarter more after one that did not.
    """

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._usual: float | None = None  # seconds of a step without prompts, with all threads
        self._rows: dict[bool, float] = {False: _FIRST, True: _FIRST}  # beside an encode, and not

    def rows(self, answers: int, encoding: bool) -> int:
        if not answers:
            return self._n_batch
        return max(_LEAST, min(int(self._rows[encoding]), self._n_batch - answers))

    def note(self, seconds: float, answers: int, rows: int, encoding: bool) -> None:
        """A step took `seconds`, with `answers` tokens of answers and `rows` of prompts."""
        if not answers:
            return
        if not rows:
            if not encoding:
                known = self._usual
                self._usual = seconds if known is None else known + _SMOOTH * (seconds - known)
            return
        allowed = self._rows[encoding]
        if self._usual is not None and seconds > _PATIENCE * self._usual:
            self._rows[encoding] = max(_LEAST, min(allowed, rows) / 2)
        elif rows >= int(allowed):
            self._rows[encoding] = min(self._n_batch, allowed * 1.25)
