"""How many drafted tokens a step evaluates: as many as make the answers faster, judged by the times of earlier steps.

Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Speculate = Literal["auto", "off", "on"]
MODES: tuple[Speculate, ...] = ("auto", "off", "on")
# A step with work in addition to the streams' tokens takes at most this many times the usual time between two tokens.
MAX_STEP_SLOWDOWN = 2.4
MAX_DRAFT_TOKENS = 15  # tokens in a step, of all answers together
_ROWS = (2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64)  # rows of a step with drafts: few sizes, so each is soon measured
_MIN_SPEEDUP = 1.05  # times as fast as without drafts, or nothing is drafted
_MIN_ROW_COST = 0.03  # assumed time of each further row of a size that was never tried, as a part of the whole step
_SMOOTHING = 0.2  # weight of a new step in the time of its size
_OUTLIER = 3.0  # a step longer than this many times the known time counts as this long
_DISCOUNT = 0.999  # of the assumed time of a size, at each choice of another size: some day it is tried again


def draft_length_policy(mode: Speculate, *, exact: bool, needs_checkpoints: bool) -> DraftLengthPolicy | None:
    """Return None where nothing is to be drafted.

    A cache that needs checkpoints cannot drop wrong drafts. With `exact`, logits must not depend on measured times.
    """
    if mode == "off" or needs_checkpoints or (mode == "auto" and exact):
        return None
    return DraftLengthPolicy(mode)


@dataclass
class _StepTime:
    """The time of a step with some number of rows. `discount` falls while no such step runs."""

    measured: float  # seconds
    discount: float = 1.0

    @property
    def assumed(self) -> float:
        return self.measured * self.discount

    def record(self, seconds: float) -> None:
        weight = max(_SMOOTHING, 1 - self.discount)
        self.measured += weight * (min(seconds, _OUTLIER * self.measured) - self.measured)
        self.discount = 1.0


class DraftLengthPolicy:
    """Weighs the tokens that a step may gain against the time that its rows take.

    What a row costs cannot be known beforehand. With a GPU, or with a model that waits for its weights, a few rows are
    nearly free; on a CPU two may take longer than twice one, and sixteen as long as eight. So a size that was never
    tried is assumed to cost little more than a smaller one.
    """

    def __init__(self, mode: Speculate) -> None:
        self._always = mode == "on"
        self._times: dict[int, dict[int, _StepTime]] = defaultdict(dict)  # by the threads and the rows of a step

    def draft_count(self, answers: int, chances: Sequence[float], threads: int, shared: bool) -> int:
        """Return how many drafted tokens to evaluate in addition to the pending tokens of the `answers`.

        `chances` are the probabilities of the drafted tokens to be accepted, in descending order. `shared`: the
        background worker is busy.
        """
        chances = chances[:MAX_DRAFT_TOKENS]
        if self._always or not chances:
            return len(chances)
        times = self._times[threads]
        if answers not in times:
            return 0
        expected_tokens = list(accumulate(chances, initial=float(answers)))
        sizes = [rows for rows in _ROWS if answers < rows < answers + len(expected_tokens)]
        must_be_smooth = shared or answers > 1
        longest = MAX_STEP_SLOWDOWN * self._usual(answers, threads, shared)
        speeds = {
            rows: expected_tokens[rows - answers] / _assumed(times, rows)
            for rows in sizes
            if not must_be_smooth or _longest(times, rows) <= longest
        }
        best = max(speeds, key=speeds.__getitem__, default=answers)
        if best == answers or speeds[best] < _MIN_SPEEDUP * answers / _assumed(times, answers):
            best = answers
        for rows in (answers, *sizes):
            if rows != best and rows in times:
                times[rows].discount *= _DISCOUNT
        return best - answers

    def record(self, seconds: float, rows: int, threads: int) -> None:
        """Learn from a step with `rows` that took `seconds`."""
        self._times[threads].setdefault(rows, _StepTime(seconds)).record(seconds)

    def _usual(self, answers: int, threads: int, shared: bool) -> float:
        """Return the seconds of a step without drafts: with as many threads as known, where cores are `shared`."""
        if shared:
            threads = max(count for count, times in self._times.items() if answers in times)
        return self._times[threads][answers].measured


def _assumed(times: dict[int, _StepTime], rows: int) -> float:
    """Return the seconds of a step with `rows`. A size that was never tried costs little more than smaller ones."""
    if rows in times:
        return times[rows].assumed
    return max(time.measured * (1 + _MIN_ROW_COST * (rows - count)) for count, time in times.items() if count < rows)


def _longest(times: dict[int, _StepTime], rows: int) -> float:
    """Like `_assumed`, but a size that was never tried costs as much for each row as the next smaller one."""
    if rows in times:
        return times[rows].assumed
    count = max(count for count in times if count < rows)
    return times[count].measured * rows / count
