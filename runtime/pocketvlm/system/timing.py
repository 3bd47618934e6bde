"""Time work on this machine: repeat it until the times agree, and check that it had the processor to itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

_MAX_SPREAD = 1.1  # times the shortest time: the second shortest may take as long
# The least share of the processor's time for this process: other programs make every barrier of threads wait.
_MIN_SHARE = 0.75
_MIN_BEST = 3  # measurements


@dataclass
class RepeatedTiming:
    """Measurements of the same work: `least` to `most` of them, but no further one after `enough` seconds.

    `threads`: how many threads of this process compute all the time; None where a GPU does.
    """

    threads: int | None
    least: int = 2
    most: int = 32
    enough: float = 4.0
    _measurements: list[tuple[float, float]] = field(default_factory=list)  # seconds: wall time, processor time

    def run(self, work: Callable[[], object]) -> None:
        """Do the work once and time it."""
        began, computed = time.perf_counter(), time.process_time()
        work()
        self.add(time.perf_counter() - began, time.process_time() - computed)

    def add(self, seconds: float, computed: float) -> None:
        """Add a measurement. `computed` is the processor time of this process's threads, in seconds."""
        self._measurements.append((max(seconds, 1e-6), computed))

    @property
    def begun(self) -> bool:
        """Whether there is a measurement."""
        return bool(self._measurements)

    @property
    def wanted(self) -> bool:
        """Whether another measurement is needed."""
        if not self._measurements:
            return True
        if len(self._measurements) >= self.most or sum(wall for wall, _ in self._measurements) >= self.enough:
            return False
        return len(self._measurements) < self.least or not self.steady

    @property
    def seconds(self) -> float:
        """The median of the shorter half, because disturbances only make work longer."""
        return median(wall for wall, _ in self._best)

    @property
    def steady(self) -> bool:
        """Whether the shortest two agree, and this process had the processor to itself."""
        best = self._best
        wall, computed = (sum(times) for times in zip(*best, strict=True))
        alone = self.threads is None or computed >= _MIN_SHARE * self.threads * wall
        return alone and best[min(1, len(best) - 1)][0] <= _MAX_SPREAD * best[0][0]

    @property
    def _best(self) -> list[tuple[float, float]]:
        return sorted(self._measurements)[: max(_MIN_BEST, len(self._measurements) // 2)]
