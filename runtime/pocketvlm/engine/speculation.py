"""How many drafted tokens a step takes: as many as make the answers faster, by what steps have taken so far. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

Speculate = Literal["auto", "off", "on"]
MODES: tuple[Speculate, ...] = ("auto", "off", "on")
DRAFTED = 15  # tokens in a step at most, of all answers together
_ROWS = (2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64)  # of a step with drafts: few sizes, so that each is known soon
_WORTH = 1.05  # times as fast as without
_SMOOTH, _OUTLIER = 0.2, 3.0  # of the time of a step; one that took longer than so many times it tells little
_HOPE = 0.998  # of the time of a size that was not taken, at each choice: some day it is tried again


class Speculation:
    """Weighs tokens that a step may gain against the time that its rows take.

    What a row costs cannot be told beforehand: with a GPU, or a model that waits for its weights, a few are nearly
    free; on a CPU two may take longer than twice one, and sixteen as long as eight. So each size is taken to cost no
    more than a smaller one until it was tried.
    """

    def __init__(self, mode: Speculate) -> None:
        self._always = mode == "on"
        # By whether the side thread has cores, and by the rows of a step.
        self._seconds: dict[bool, dict[int, float]] = {False: {}, True: {}}

    def drafted(self, answers: int, chances: Sequence[float], shared: bool) -> int:
        """How many drafted tokens to evaluate beside one of each of the `answers`.

        `chances` of each to be right, the likeliest first.
        """
        chances = chances[:DRAFTED]
        if self._always or not chances:
            return len(chances)
        seconds = self._seconds[shared]
        if answers not in seconds:
            return 0
        expected = [float(answers)]
        for chance in chances:
            expected.append(expected[-1] + chance)
        sizes = [rows for rows in _ROWS if answers < rows < answers + len(expected)]
        speed = {rows: expected[rows - answers] / self._time(rows, shared) for rows in sizes}
        best = max(sizes, key=speed.__getitem__, default=answers)
        if best == answers or speed[best] < _WORTH * answers / seconds[answers]:
            best = answers
        for rows in (answers, *sizes):
            if rows != best and rows in seconds:
                seconds[rows] *= _HOPE
        return best - answers

    def note(self, seconds: float, rows: int, shared: bool) -> None:
        """A step with `rows` took so long."""
        known = self._seconds[shared]
        usual = known.setdefault(rows, seconds)
        known[rows] = usual + _SMOOTH * (min(seconds, _OUTLIER * usual) - usual)

    def _time(self, rows: int, shared: bool) -> float:
        """Of a step with so many rows; of what is known, where it never ran."""
        seconds = self._seconds[shared]
        if rows in seconds:
            return seconds[rows]
        sizes = sorted(seconds)
        return max(seconds[size] for size in sizes[: bisect_left(sizes, rows)])
