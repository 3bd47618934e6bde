"""The background worker: one thread for work that running answers must not wait for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol


class BackgroundTask(Protocol):
    """Work done in pieces. Pieces of `urgent` tasks run before those of other tasks."""

    urgent: bool
    dropped: bool

    def run(self) -> Callable[[], None]:
        """Do the next piece on the worker's thread, without raising. Return the report to call, unless dropped."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether the next piece follows without being asked for, after other tasks had their turn."""
        ...

    def needed_by(self, others: Iterable[BackgroundTask], /) -> bool:
        """Whether one of the waiting `others` needs the running piece although this task was dropped."""
        ...

    def stop(self) -> None:
        """Make the running piece end soon. Holds until `allow`."""
        ...

    def allow(self) -> None: ...

    def release(self) -> None:
        """Free what the task holds. Called once, when it was dropped and no longer runs."""
        ...


class BackgroundWorker:
    """Runs tasks piece by piece, in turns."""

    def __init__(self) -> None:
        self._queue: deque[BackgroundTask] = deque()
        self._current: BackgroundTask | None = None
        self._pieces_started = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pocketvlm-background", daemon=True)
        self._thread.start()

    @property
    def tasks(self) -> list[BackgroundTask]:
        """The running task and the waiting ones."""
        with self._changed:
            return [*self._queue, *filter(None, [self._current])]

    @property
    def busy(self) -> bool:
        return bool(self._queue) or self._current is not None

    def count_progress(self) -> None:
        """Report to the watchdog that the running piece has begun another part."""
        self._pieces_started += 1

    @property
    def progress(self) -> int | None:
        """The number of the running piece or part of one, rising with time; None while idle."""
        return None if self._current is None else self._pieces_started

    def ask(self, task: BackgroundTask) -> None:
        """Queue the next piece of a task. Does nothing where it is queued, running or dropped."""
        with self._changed:
            if task is not self._current and task not in self._queue and not task.dropped:
                self._enqueue(task)
                self._changed.notify()

    def drop(self, task: BackgroundTask) -> None:
        """Forget a task. Stop its running piece unless a waiting task needs it."""
        with self._changed:
            if task.dropped:
                return
            task.dropped = True
            if task in self._queue:
                self._queue.remove(task)
            current = self._current
            if current is not None and current.dropped and not current.needed_by(self._queue):
                current.stop()
            if task is current:
                return  # the thread calls `release`
        task.release()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if self._current is not None:
                self._current.dropped = True
                self._current.stop()
            self._changed.notify()
        self._thread.join()

    def _enqueue(self, task: BackgroundTask) -> None:
        before = sum(other.urgent for other in self._queue) if task.urgent else len(self._queue)
        self._queue.insert(before, task)

    def _run(self) -> None:
        while self._run_piece():
            pass

    def _run_piece(self) -> bool:
        """Run one piece; False when closed. A call of its own, so that an idle thread keeps no request alive."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._pieces_started += 1
            task = self._current = self._queue.popleft()
        report = task.run()
        with self._changed:
            self._current = None
            task.allow()
            dropped = task.dropped
            if task.repeats and not dropped:
                self._enqueue(task)
        if dropped:
            task.release()
        else:
            report()
        return True
