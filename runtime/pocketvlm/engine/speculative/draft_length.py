"""How many drafted tokens a step takes: as many as make the answers faster, by what steps have taken so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Speculate = Literal["auto", "off", "on"]
MAX_STEP_SLOWDOWN = 2.4  # a step beside running streams takes at most this many times the usual time between two tokens
MODES: tuple[Speculate, ...] = ("auto", "off", "on")
MAX_DRAFT_TOKENS = 15  # tokens in a step at most, of all answers together
_ROWS = (2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64)  # of a step with drafts: few sizes, so that each is known soon
_WORTH = 1.05  # times as fast as without
_ROW = 0.03  # of the time of a step: what a row more takes at least, where nobody has tried
_SMOOTH, _OUTLIER = 0.2, 3.0  # of the time of a step; one that took longer than so many times it tells little
_HOPE = 0.999  # of the time of a size that was not taken, at each choice: some day it is tried again


def draft_length_policy(mode: Speculate, *, exact: bool, forgets: bool) -> DraftLengthPolicy | None:
    """None where nothing is drafted: wrong guesses must leave the cache, and times would make `exact` logits vary."""
    if mode == "off" or forgets or (mode == "auto" and exact):
        return None
    return DraftLengthPolicy(mode)


@dataclass
class _Size:
    """What a step of so many rows takes, and how far it is hoped to take less by now."""

    seconds: float
    hope: float = 1.0

    def note(self, seconds: float) -> None:
        share = max(_SMOOTH, 1 - self.hope)
        self.seconds += share * (min(seconds, _OUTLIER * self.seconds) - self.seconds)
        self.hope = 1.0


class DraftLengthPolicy:
    """Weighs tokens that a step may gain against the time that its rows take.

    What a row costs cannot be told beforehand: with a GPU, or a model that waits for its weights, a few are nearly
    free; on a CPU two may take longer than twice one, and sixteen as long as eight. So each size is taken to cost
    little more than a smaller one until it was tried.
    """

    def __init__(self, mode: Speculate) -> None:
        self._always = mode == "on"
        # By whether the side thread has cores, and by the rows of a step.
        self._sizes: dict[bool, dict[int, _Size]] = {False: {}, True: {}}

    def draft_count(self, answers: int, chances: Sequence[float], shared: bool) -> int:
        """How many drafted tokens to evaluate beside one of each of the `answers`.

        `chances` of each to be right, the likeliest first.
        """
        chances = chances[:MAX_DRAFT_TOKENS]
        if self._always or not chances:
            return len(chances)
        known = self._sizes[shared]
        if answers not in known:
            return 0
        expected = list(accumulate(chances, initial=float(answers)))
        sizes = [rows for rows in _ROWS if answers < rows < answers + len(expected)]
        speed = {
            rows: expected[rows - answers] / _seconds(known, rows)
            for rows in sizes
            if not (shared or answers > 1) or _at_worst(known, rows) <= MAX_STEP_SLOWDOWN * self._usual(answers, shared)
        }
        best = max(speed, key=speed.__getitem__, default=answers)
        if best == answers or speed[best] < _WORTH * answers / _seconds(known, answers):
            best = answers
        for rows in (answers, *sizes):
            if rows != best and rows in known:
                known[rows].hope *= _HOPE
        return best - answers

    def _usual(self, answers: int, shared: bool) -> float:
        """Seconds of a step without drafts, with all cores if that is known."""
        known = self._sizes[False if answers in self._sizes[False] else shared]
        return known[answers].seconds

    def record(self, seconds: float, rows: int, shared: bool) -> None:
        """A step with `rows` took so long."""
        self._sizes[shared].setdefault(rows, _Size(seconds)).note(seconds)


def _seconds(known: dict[int, _Size], rows: int) -> float:
    """Of a step with so many rows: as hoped; little more than smaller ones, where it never ran."""
    if rows not in known:
        return max(size.seconds * (1 + _ROW * (rows - count)) for count, size in known.items() if count < rows)
    return known[rows].seconds * known[rows].hope


def _at_worst(known: dict[int, _Size], rows: int) -> float:
    """The same; by the row, where it never ran."""
    if rows in known:
        return _seconds(known, rows)
    count = max(count for count in known if count < rows)
    return known[count].seconds * rows / count
