"""How long work takes on this machine: done again until its times agree, and judged by who had the processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

_AGREE = 1.1  # times as long as the shortest, the next may be
_OWN = 0.75  # of the processor's time, at the least: what other programs take makes each barrier of threads wait
_BEST = 3  # takes, at the least


@dataclass
class RepeatedTiming:
    """Of the same work, `least` to `most` times, but no more after `enough` seconds.

    `threads` compute all the while; None where something else does, as a GPU.
    """

    threads: int | None
    least: int = 2
    most: int = 32
    enough: float = 4.0
    _taken: list[tuple[float, float]] = field(default_factory=list)

    def run(self, work: Callable[[], object]) -> None:
        began, computed = time.perf_counter(), time.process_time()
        work()
        self.add(time.perf_counter() - began, time.process_time() - computed)

    def add(self, seconds: float, computed: float) -> None:
        """`computed`: what this process's threads had of the processor meanwhile."""
        self._taken.append((max(seconds, 1e-6), computed))

    @property
    def wanted(self) -> bool:
        """Another one."""
        if not self._taken:
            return True
        if len(self._taken) >= self.most or sum(wall for wall, _ in self._taken) >= self.enough:
            return False
        return len(self._taken) < self.least or not self.steady

    @property
    def seconds(self) -> float:
        """The median of the shorter half: what disturbs only makes longer."""
        return median(wall for wall, _ in self._best)

    @property
    def steady(self) -> bool:
        """Whether the shortest two agree, and this process had the processor."""
        best = self._best
        alone = self.threads is None or sum(own for _, own in best) >= _OWN * self.threads * sum(w for w, _ in best)
        return alone and best[min(1, len(best) - 1)][0] <= _AGREE * best[0][0]

    @property
    def _best(self) -> list[tuple[float, float]]:
        return sorted(self._taken)[: max(_BEST, len(self._taken) // 2)]
