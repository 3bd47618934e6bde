"""How the decoder and the background worker share the cores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThreadBudget:
    """Threads of the decoder: `all` while the background worker is idle, `shared` while it works."""

    all: int
    shared: int

    @property
    def background(self) -> int:
        """Threads of the background worker; 0 where decoder and encoder take turns with all threads."""
        return self.all - self.shared

    @classmethod
    def split(cls, count: int, *, parallel: int) -> ThreadBudget:
        """Give half of `count` threads to the background worker where several requests run in parallel.

        Twice as many threads as cores would stall all of them.
        """
        return cls(count, max(1, count - max(1, count // 2)) if parallel > 1 else count)
