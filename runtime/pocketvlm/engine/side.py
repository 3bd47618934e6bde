"""The thread for work that answers must not wait for: it has the cores that the decoder leaves."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol


class Task(Protocol):
    """Work that is done in pieces. `first`: its pieces go before those of tasks that are not."""

    first: bool
    dropped: bool

    def run(self) -> Callable[[], None]:
        """Do the next piece, on the thread, without raising; what is to be called then, unless it was dropped."""
        ...

    @property
    def again(self) -> bool:
        """Whether the next piece should follow unasked, after others had their turn."""
        ...

    def wanted(self, others: Iterable[Task], /) -> bool:
        """Whether some of the `others`, which wait, need the piece that runs, though it was dropped."""
        ...

    def stop(self) -> None:
        """Make the piece that runs end soon. Holds until `allow`."""
        ...

    def allow(self) -> None: ...

    def left(self) -> None:
        """It was dropped, and does not run any more."""
        ...


class SideThread:
    def __init__(self) -> None:
        self._turns: deque[Task] = deque()
        self._current: Task | None = None
        self._begun = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pocketvlm-side", daemon=True)
        self._thread.start()

    @property
    def tasks(self) -> list[Task]:
        """Those that run or wait for their turn."""
        with self._changed:
            return [*self._turns, *filter(None, [self._current])]

    @property
    def busy(self) -> bool:
        return bool(self._turns) or self._current is not None

    def waited_for(self, *, but: Task | None) -> bool:
        """Whether others than that task wait for their turn."""
        with self._changed:
            return any(task is not but for task in self._turns)

    def gets_on(self) -> None:
        """The piece that runs has begun another part of it."""
        self._begun += 1

    @property
    def doing(self) -> int | None:
        """Which piece, or part of one, is being done, in order of time."""
        return None if self._current is None else self._begun

    def ask(self, task: Task) -> None:
        """Do the next piece of it. Harmless where that was asked for already."""
        with self._changed:
            if task is not self._current and task not in self._turns and not task.dropped:
                self._enter(task)
                self._changed.notify()

    def drop(self, task: Task) -> None:
        """Forget it, and stop it where it runs, unless others wait for that."""
        with self._changed:
            if task.dropped:
                return
            task.dropped = True
            if task in self._turns:
                self._turns.remove(task)
            current = self._current
            if current is not None and current.dropped and not current.wanted(self._turns):
                current.stop()
            if task is current:
                return  # `left` is called by the thread
        task.left()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if self._current is not None:
                self._current.dropped = True
                self._current.stop()
            self._changed.notify()
        self._thread.join()

    def _enter(self, task: Task) -> None:
        before = sum(other.first for other in self._turns) if task.first else len(self._turns)
        self._turns.insert(before, task)

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """A piece of a task; False when closed. A call of its own, so that a thread that waits holds no request."""
        with self._changed:
            while not self._turns and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._begun += 1
            task = self._current = self._turns.popleft()
        report = task.run()
        with self._changed:
            self._current = None
            task.allow()
            dropped = task.dropped
            if task.again and not dropped:
                self._enter(task)
        if dropped:
            task.left()
        else:
            report()
        return True
