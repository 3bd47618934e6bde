"""How many threads evaluate a step: fewer while other programs compute, judged by the times of steps.

The threads of a step wait for each other many times. One of them that shares its core with another program makes all
of them wait, so fewer threads may be faster. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

_WINDOW = 0.1  # seconds of steps after which it is judged whether other programs take cores
_USUAL_LOSS, _USUAL_THREAD_LOSS = 0.2, 0.01  # cores that steps do not get where nothing else runs: in all, per thread
_PROGRAM_LOSS = 0.5  # of a core, that a thread loses to a program on the same core
_FREE = 0.5  # of a core, that is idle while another thread could compute
_ENOUGH_STEPS, _ENOUGH_SECONDS = 2, 0.05  # to compare numbers of threads: at least both
_TRIAL_STEPS, _TRIAL_SECONDS = 20, 0.5  # a trial that has taken both without an end is given up
_BETTER = 0.95  # of the time with the present number: a smaller number that takes less is chosen
_WORSE = 1.25  # of it: a step that takes more ends a trial
_STALE = 1.0  # seconds without a step, after which a trial begins again
_UNRECORDED_STEPS, _UNRECORDED_SECONDS = 10, 5.0  # after both without a recorded step, all threads are used again
_GAIN = 0.3  # of what more threads could gain at most: for a while they seem faster than they stay
_PAUSE, _LONGEST_PAUSE = 1.0, 2.0  # seconds between two trials in one direction
_BUSY_PAUSE = 1.5  # seconds between trials of more threads where no core is idle
_CROWDED = 1.0  # seconds for which cores count as crowded, after other programs have taken some and none was idle
_CROWDED_PAUSE = 30.0  # seconds between trials of more threads meanwhile
_COST = 0.05  # of the time may be lost by trials of more threads


def larger_counts(count: int, most: int) -> list[int]:
    """Return the numbers of threads that are tried one after the other, to return from `count` to `most`."""
    rungs = (2, most // 4, most // 2, most * 3 // 4, most - 2, most - 1, most)
    return sorted({rung for rung in rungs if count < rung <= most})


@dataclass
class _Trial:
    """Steps with another number of threads, then steps with the present one, unless enough of them are known.

    Steps with the same number of rows are compared. `times` has the seconds with the other number by the rows, and
    `known` those of the latest steps with the present number.
    """

    present: int
    other: int
    known: dict[int, list[float]]
    times: dict[int, list[float]] = field(default_factory=dict)
    rows: int | None = None  # of which there are enough steps with the other number
    steps: int = 0
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return self.other if self.rows is None else self.present

    @property
    def done(self) -> bool:
        return self.rows is not None and _are_enough(self.known.get(self.rows, []))

    @property
    def endless(self) -> bool:
        """Whether rows vary so much that no number of them has enough steps."""
        return not self.done and self.steps >= _TRIAL_STEPS and self.seconds >= _TRIAL_SECONDS

    def record(self, rows: int, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        times = (self.times if self.rows is None else self.known).setdefault(rows, [])
        times.append(seconds)
        if self.rows is None:
            known = self.known.get(rows, [])
            is_worse = _are_enough(known) and seconds > _WORSE * _mean(known)
            if is_worse or _are_enough(times):
                self.rows = rows


def _are_enough(times: list[float]) -> bool:
    return sum(times) >= _ENOUGH_SECONDS and (len(times) >= _ENOUGH_STEPS or sum(times) >= 2 * _ENOUGH_SECONDS)


def _mean(times: list[float]) -> float:
    return sum(times) / len(times)


class ThreadCountPolicy:
    """Finds the number of threads that is fastest now, of at most `most`.

    Where steps get less of the processor than their threads could use, a smaller number is tried, by how many programs
    seem to take cores. With fewer than all threads a larger one is tried about once a second, less often where no core
    is idle, and rarely where even the fewer threads get too little: two threads that wait for each other and for two
    programs may take seconds for a step.

    `others` threads of this process compute at the same time. `idle` returns the seconds for which cores have been idle
    so far, of all cores together; None where that is not known.
    """

    def __init__(self, most: int, *, others: int = 0, idle: Callable[[], float | None] = lambda: None) -> None:
        self.count = self._most = most
        self._others, self._idle = others, idle
        self._trial: _Trial | None = None
        self._last = 0.0  # when the last step began, or ended
        self._recorded = 0.0  # when the last recorded step ended
        self._unrecorded = 0  # steps since
        self._times: dict[int, list[float]] = {}  # seconds of the steps in this window, by their rows
        self._computed = 0.0  # in this window
        self._window: tuple[float, float | None] = (0.0, None)  # when it began, and `idle` then
        self._known: dict[int, list[float]] = {}  # `times` of the window before
        self._programs = 0  # that seem to take cores
        self._is_free: bool | None = None  # whether a core is idle; None where that is not known
        self._crowded_at = -_CROWDED  # when other programs last took cores while none was idle
        self._larger_tried = self._smaller_tried = -_CROWDED_PAUSE  # when a trial ended
        self._larger_pause = 0.0  # after it, because of what it cost
        self._smaller_pause = _PAUSE

    @property
    def compares(self) -> bool:
        """Whether the next step is part of a trial: it should be like other steps, without drafts."""
        return self._trial is not None

    def next_count(self, now: float) -> int:
        """Return the number of threads for the next step. `now`: seconds.

        Steps with prompts in them are not recorded. After many of these it is unknown what is fastest now.
        """
        if now - self._last > _STALE:
            self._trial, self._known, self._unrecorded = None, {}, 0
            self._look_for_free_cores(now)
        elif self._unrecorded >= _UNRECORDED_STEPS and now - self._recorded > _UNRECORDED_SECONDS:
            self.count, self._trial, self._programs, self._known = self._most, None, 0, {}
        self._last = now
        self._unrecorded += 1
        if self._trial is None:
            if self._programs and self.count > 1 and now >= self._smaller_tried + self._smaller_pause:
                self._trial = _Trial(self.count, max(1, self.count - self._programs), self._known)
            elif self.count < self._most and self._may_try_more(now):
                self._trial = _Trial(self.count, larger_counts(self.count, self._most)[0], self._known)
        return self._trial.count if self._trial else self.count

    def prompt_count(self, now: float) -> int:
        """Return the number of threads for a step with prompts alone. It is not recorded.

        It is that of the last answer. After a pause it is all threads, unless no core is idle.
        """
        if self.count < self._most and now - self._last > _STALE:
            self._look_for_free_cores(now)
            if self._is_free is not False:
                self.count, self._trial, self._programs = self._most, None, 0
        return self.count

    def _may_try_more(self, now: float) -> bool:
        crowded = not self._is_free and now < self._crowded_at + _CROWDED
        pause = _CROWDED_PAUSE if crowded else _BUSY_PAUSE if self._is_free is False else _PAUSE
        return now >= self._larger_tried + max(pause, self._larger_pause)

    def record(self, rows: int, seconds: float, computed: float, now: float) -> None:
        """Learn from a step that ended `now`. It took `seconds`, and `computed` seconds of processor time."""
        self._last = self._recorded = now
        self._unrecorded = 0
        if self._trial is not None:
            self._trial.record(rows, seconds)
            if self._trial.done:
                self._decide(self._trial, now)
            elif self._trial.endless:
                self._give_up(self._trial, now)
            return
        self._times.setdefault(rows, []).append(seconds)
        self._computed += computed
        total = sum(map(sum, self._times.values()))
        if total >= _WINDOW:
            lost = self.count + self._others - self._computed / total
            usual = _USUAL_LOSS + _USUAL_THREAD_LOSS * self.count
            self._programs = max(1, round(lost / _PROGRAM_LOSS)) if lost > usual else 0
            self._known = self._times
            self._look_for_free_cores(now)
            if self._programs and self._is_free is False:
                self._crowded_at = now

    def _look_for_free_cores(self, now: float) -> None:
        """Begin a window. Where a core has become idle, it no longer counts what the last trial cost."""
        began, before = self._window
        idle = self._idle() if self.count < self._most else None
        was_free, self._is_free = self._is_free, None
        if idle is not None and before is not None:
            self._is_free = idle - before > _FREE * (now - began)
        if self._is_free and was_free is False:
            self._larger_pause = 0.0
        self._window, self._times, self._computed = (now, idle), {}, 0.0

    def _decide(self, trial: _Trial, now: float) -> None:
        assert trial.rows is not None
        times = trial.times[trial.rows]
        mean, other_mean = _mean(trial.known[trial.rows]), _mean(times)
        smaller = trial.other < trial.present
        if other_mean < mean * (_BETTER if smaller else 1 - _GAIN * (1 - trial.present / trial.other)):
            self.count, self._smaller_pause, self._larger_pause = trial.other, _PAUSE, 0.0
            self._larger_tried = now if smaller else -_CROWDED_PAUSE
            self._smaller_tried = -_CROWDED_PAUSE
            self._end_trial(now)
        else:
            if not smaller:
                self._larger_pause = min((other_mean - mean) * len(times) / _COST, _CROWDED_PAUSE)
            self._give_up(trial, now)

    def _give_up(self, trial: _Trial, now: float) -> None:
        """Keep the present number of threads."""
        if trial.other < trial.present:
            self._smaller_tried = now
            self._smaller_pause = min(2 * self._smaller_pause, _LONGEST_PAUSE)
        else:
            self._larger_tried = now
        self._end_trial(now)

    def _end_trial(self, now: float) -> None:
        self._trial, self._programs, self._known = None, 0, {}
        self._look_for_free_cores(now)
