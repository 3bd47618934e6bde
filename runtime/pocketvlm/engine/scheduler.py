"""Many requests on one context: who waits, who runs, and what becomes of them.

One thread does all of it, step by step. The others talk to it by commands, which it reads between two steps.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from pocketvlm.engine.cache import length_of
from pocketvlm.engine.encoding import Encoding
from pocketvlm.engine.engine import Progress, Statistics
from pocketvlm.engine.helper import idle_threads
from pocketvlm.engine.job import Job
from pocketvlm.engine.lanes import Lanes
from pocketvlm.engine.prefill import Prefill
from pocketvlm.engine.sampling import Drawer
from pocketvlm.engine.side import SideThread
from pocketvlm.engine.speculation import Speculation
from pocketvlm.engine.step import Stepper, Threads
from pocketvlm.errors import EngineClosedError, EngineError, QueueFullError
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.table import TokenTable
from pocketvlm.vision.encoder import Embeddings, Seen, Slot, Vision

_log = logging.getLogger(__name__)
_SMOOTH = 0.2
_BUSY = 60  # seconds without spare time, after there was none
_T = TypeVar("_T")


class Scheduler:
    """Owns the context from now on. `sink`s are called on its thread, the side thread, or that which closes it.

    `aside` makes the context for prompts beside answers; without it, they go with the answers' steps. `table`, called
    on its thread, the one with which text goes beside pictures.
    """

    def __init__(
        self,
        model: Model,
        vision: Vision | None,
        context: Context,
        *,
        lanes: int,
        queue_size: int,
        threads: Threads,
        table: Callable[[], TokenTable | None] | None = None,
        speculation: Speculation | None = None,
        aside: Callable[[], Context] | None = None,
    ) -> None:
        self._model, self._vision = model, vision
        self._recurrent = model.recurrent  # `cancel` may come when the model is closed
        self._lanes = Lanes(context, lanes)
        self._most = lanes + queue_size
        self._stepper = Stepper(
            context, self._lanes, threads, speculation=speculation, moved=self._moved, over=self._over
        )
        self._table = table
        self._ahead = threads.beside < threads.all
        # From when there is spare time. The encoder's threads have the priority of its session: only the caller's can
        # be one for it.
        self._spare = 0.0 if threads.rest == 1 and idle_threads() else math.inf
        # Where decoder and encoder take turns, larger batches cost less, and nothing is gained by small ones.
        self._gather = 0 if self._ahead else context.n_batch
        self._side = SideThread()
        self._prefill: Prefill | None = None
        if aside is not None:
            self._prefill = Prefill(
                context,
                self._side,
                aside,
                room=context.n_ctx,
                post=self._post,
                moved=self._look_ahead,
                answer=self._stepper.draw,
            )
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()  # guards the next three
        self._open = 0
        self._closed = False
        self._statistics = Statistics(parallel=lanes)
        self._seconds = 1.0  # of a usual request
        self._steps = itertools.count()
        self._step: int | None = None  # that runs
        self._thread = threading.Thread(target=self._run, name="pocketvlm-scheduler", daemon=True)
        self._thread.start()

    # --- from any thread

    def submit(self, job: Job) -> None:
        """Raises QueueFullError or EngineClosedError, and then the job's sink is never called."""
        with self._lock:
            if self._closed:
                raise EngineClosedError("the model is closed")
            if self._open >= self._most:
                wait = max(1.0, self._seconds * (self._open - len(self._lanes) + 1) / len(self._lanes))
                raise QueueFullError(f"{self._open:,} requests are running or waiting already", round(wait, 1))
            self._open += 1
            self._post(partial(self._waiting.append, job))  # before `close` can be the last to post

    def cancel(self, job: Job) -> None:
        """Forget it, at whatever stage: nothing more goes to its sink once the scheduler knows."""
        job.cancelled = True
        if (encoding := job.encoding) is not None:
            self._side.drop(encoding)
        if not self._recurrent:  # else others could lose their cache
            self._stepper.abort_unwanted()
        self._post(partial(self._end, job))

    def between_steps(self, work: Callable[[Lanes], _T]) -> _T:
        """What `work` does with the lanes while nothing is evaluated."""
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(work(self._lanes))
            except Exception as error:  # whoever asked is told
                done.set_exception(error)

        with self._lock:
            if self._closed:
                raise EngineClosedError("the model is closed")
            self._post(run)
        return done.result()

    def wake(self) -> None:
        """A reader that had fallen behind has caught up."""
        self._post(lambda: None)

    def statistics(self) -> Statistics:
        running = len(self._stepper.running)
        with self._lock:
            queued = max(0, self._open - running)
            encoding = sum(isinstance(task, Encoding) for task in self._side.tasks)
            return replace(self._statistics, running=running, queued=queued, encoding=encoding)

    @property
    def doing(self) -> tuple[int | None, int | None]:
        """Which step, and which piece of work beside them, is under way, in order of time."""
        return self._step, self._side.doing

    def close(self) -> None:
        """Every job that is not over gets EngineClosedError. Returns when nothing native runs any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._stepper.stop()
        self._side.close()
        self._post(lambda: None)
        self._thread.join()

    # --- on the scheduler's thread

    def _run(self) -> None:
        if self._table is not None:
            self._survive(self._read_table)
        while not self._closed:
            self._survive(self._turn)
        self._survive(self._stepper.deliver)  # of the last step: those who read wait for it
        while not self._inbox.empty():  # a job may have come with the close
            self._survive(self._inbox.get())
        for job in [*self._stepper.running, *self._waiting]:
            self._fail(job, EngineClosedError("the model is closed"))

    def _read_table(self) -> None:
        assert self._table is not None
        self._stepper.table = table = self._table()
        if self._prefill is not None:
            self._prefill.side.table = table

    def _survive(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # a fault of ours: those who wait must not wait for ever
            _log.exception("the scheduler failed")
            for job in [*self._stepper.running, *self._waiting]:
                self._fail(job, EngineError(f"the engine failed: {type(error).__name__}"))
            self._lanes.forget()

    def _turn(self) -> None:
        """Read commands, waiting for one where there is nothing to do; then a step."""
        ready = self._admit()
        if not ready and not self._stepper.can_step():
            self._stepper.deliver()
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        self._admit()
        if not self._closed and self._stepper.running:
            self._step = next(self._steps)
            try:
                if self._prefill is not None:
                    self._prefill.advance(self._stepper.running)
                self._stepper.step(shared=self._side.busy)
            finally:
                self._step = None

    def _admit(self) -> bool:
        """Give free lanes to those who have waited longest."""
        admitted = False
        while self._waiting and self._lanes.free:
            job = self._waiting.popleft()
            try:
                self._begin(job)
                admitted = True
            except Exception as error:  # this request's alone
                self._fail(job, error)
        return admitted

    def _begin(self, job: Job) -> None:
        job.began = time.perf_counter()
        job.lane, known = self._lanes.take(job.units)
        self._stepper.running.append(job)
        job.next = known
        job.stops = self._lanes.stops(job.units, known)
        job.cached_tokens = sum(map(length_of, job.units[:known]))
        job.drawer = Drawer(self._model, job.request, job.matcher)
        job.gather = self._gather
        self._encode(job)

    def _encode(self, job: Job) -> None:
        owner = {slot: picture for _, picture in job.seen for slot in picture.slots}
        todo: deque[tuple[Slot, Seen]] = deque()
        for slot in (unit for unit in job.units[job.next :] if isinstance(unit, Slot)):
            for tile in slot.tiles:
                if (rows := owner[slot].recall(tile)) is not None:
                    job.encoded(tile, rows)
                else:
                    todo.append((tile, owner[slot]))
        if self._vision is None or not todo:
            return
        job.encoding = Encoding(
            self._vision,
            todo,
            started=partial(self._started, job),
            ended=lambda tile, rows: self._post(partial(self._encoded, job, tile, rows)),
            released=job.close_pictures,
            ahead=self._ahead,
            alone=lambda: len(self._stepper.running) == 1 and not self._waiting,
            spare=lambda: time.monotonic() >= self._spare,
            late=self._late,
            wanted_by_others=lambda: self._side.waited_for(but=self._prefill.chunk(job) if self._prefill else None),
        )
        if self._ahead:
            self._side.ask(job.encoding)
        self._look_ahead(job)
        if job.cancelled:  # `cancel` may have looked before there was an encoding
            self._side.drop(job.encoding)

    def _started(self, job: Job, done: int, total: int) -> None:
        self._side.gets_on()
        if not job.cancelled:
            job.sink(Progress(done, total))

    def _late(self) -> None:
        _log.info("others have all cores: one tile at a time is encoded for %d s", _BUSY)
        self._spare = time.monotonic() + _BUSY

    def _moved(self, job: Job) -> None:
        if job.next in job.stops:
            self._lanes.mark(job.in_lane)
        self._look_ahead(job)

    def _look_ahead(self, job: Job) -> None:
        """Ask for the tile that comes next, where that was not done ahead."""
        if self._ahead or not job.in_prompt or self._vision is None:
            return
        if job.waits:
            assert job.encoding is not None
            if job.encoding.todo:
                self._side.ask(job.encoding)

    def _post(self, command: Callable[[], None]) -> None:
        """Run it on the scheduler's thread, between two steps."""
        self._inbox.put(command)

    def _encoded(self, job: Job, tile: Slot, rows: Embeddings | BaseException) -> None:
        if job.over:
            return
        if isinstance(rows, BaseException):
            self._fail(job, rows)
        else:
            job.encoded(tile, rows)
            self._look_ahead(job)  # its slot may wait for another

    def _over(self, job: Job, error: BaseException | None) -> None:
        if error is None:
            self._end(job)
        else:
            self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._stepper.deliver()
        if not job.cancelled and not job.over:
            job.sink(error)
        self._end(job, failed=True)

    def _end(self, job: Job, *, failed: bool = False) -> None:
        """The job leaves its lane, whose cache stays for those who come. Harmless where it has left already."""
        if job.over:
            return
        job.over = True
        if job in self._waiting:
            self._waiting.remove(job)
        if job.lane is not None:
            self._stepper.running.remove(job)
            if job.offset:
                self._lanes.cut(job.lane)
            self._lanes.release(job.lane)
        if job.drawer is not None:
            job.drawer.close()
        if self._prefill is not None:
            self._prefill.drop(job)
        job.rows.clear()
        job.parts.clear()
        if job.encoding is not None:
            self._side.drop(job.encoding)
            job.encoding = None  # they know each other: the pictures would stay until the garbage collector looks
        else:
            job.close_pictures()
        with self._lock:
            self._open -= 1
            old = self._statistics
            self._statistics = replace(
                old,
                finished=old.finished + (not failed and not job.cancelled),
                cancelled=old.cancelled + job.cancelled,
                failed=old.failed + (failed and not job.cancelled),
                prompt_tokens=old.prompt_tokens + (job.total if job.made else 0),
                cached_tokens=old.cached_tokens + (job.cached_tokens if job.made else 0),
                generated_tokens=old.generated_tokens + job.made,
                drafted_tokens=old.drafted_tokens + job.drafted,
                accepted_tokens=old.accepted_tokens + job.accepted,
            )
            if job.made:
                self._seconds += _SMOOTH * (time.perf_counter() - job.began - self._seconds)
