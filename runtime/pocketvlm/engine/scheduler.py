"""Many requests on one context: each step evaluates a token of every answer and some rows of the prompts.

One thread does all of it. The others talk to it by commands, which it reads between two steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from pocketvlm.engine.cache import Lane, length_of, place
from pocketvlm.engine.encoding import Encoding, EncodingThread
from pocketvlm.engine.engine import Event, Finished, Progress, Statistics
from pocketvlm.engine.job import Job
from pocketvlm.engine.pace import Pace
from pocketvlm.engine.sampling import Drawer
from pocketvlm.errors import EngineClosedError, EngineError, PocketVLMError, QueueFullError
from pocketvlm.native.context import Aborted, Batch, Context
from pocketvlm.native.llama import Model
from pocketvlm.vision.encoder import Embeddings, Slot, Vision

_log = logging.getLogger(__name__)
UNREAD = 32  # events: a reader that falls behind by more makes its answer wait
_SMOOTH = 0.2


@dataclass(frozen=True)
class Threads:
    """One budget of cores: `all` for the decoder, while no tile is encoded; then `beside`."""

    all: int
    beside: int


class Scheduler:
    """Owns the context from now on. `sink`s are called on its thread, the encoder's, or that which closes it."""

    def __init__(
        self, model: Model, vision: Vision | None, context: Context, *, lanes: int, queue_size: int, threads: Threads
    ) -> None:
        self._model, self._context, self._threads = model, context, threads
        self._lanes = [Lane(i) for i in range(lanes)]
        self._most = lanes + queue_size
        self._keeps_prefix = model.keeps_prefix
        self._ahead = threads.beside < threads.all
        self._encoder = EncodingThread(vision, ahead=self._ahead) if vision else None
        self._batch = Batch(context.n_batch)
        self._pace = Pace(context.n_batch)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # those whose prompt was served last come last
        self._outbox: list[tuple[Job, Event]] = []
        self._step_jobs: list[Job] = []  # in the evaluation that runs now
        self._clock = 0
        self._lock = threading.Lock()  # guards the next three
        self._open = 0
        self._closed = False
        self._statistics = Statistics(parallel=lanes)
        self._seconds = 1.0  # of a usual request
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
        self._inbox.put(partial(self._waiting.append, job))

    def cancel(self, job: Job) -> None:
        """Forget it, at whatever stage: nothing more goes to its sink once the scheduler knows."""
        job.cancelled = True
        if (encoding := job.encoding) is not None and self._encoder is not None:
            self._encoder.drop(encoding)
        stepping = self._step_jobs
        if self._keeps_prefix and stepping and all(other.cancelled for other in stepping):
            self._context.abort()  # nobody wants what is being evaluated; others would lose their whole cache
        self._inbox.put(partial(self._end, job))

    def wake(self) -> None:
        """A reader that had fallen behind has caught up."""
        self._inbox.put(lambda: None)

    def statistics(self) -> Statistics:
        running = len(self._running)
        with self._lock:
            queued = max(0, self._open - running)
            load = self._encoder.load if self._encoder else 0
            return replace(self._statistics, running=running, queued=queued, encoding=load)

    def close(self) -> None:
        """Every job that is not over gets EngineClosedError. Returns when nothing native runs any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._context.abort()
        if self._encoder is not None:
            self._encoder.close()
        self._inbox.put(lambda: None)
        self._thread.join()

    # --- on the scheduler's thread

    def _run(self) -> None:
        while not self._closed:
            self._survive(self._turn)
        while not self._inbox.empty():  # a job may have come with the close
            self._inbox.get()()
        for job in [*self._running, *self._waiting]:
            self._fail(job, EngineClosedError("the model is closed"))

    def _survive(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # a fault of ours: those who wait must not wait for ever
            _log.exception("the scheduler failed")
            for job in [*self._running, *self._waiting]:
                self._fail(job, EngineError(f"the engine failed: {error!r}"))

    def _turn(self) -> None:
        """Read commands, waiting for one where there is nothing to do; then a step."""
        ready = self._admit()
        if not ready and not any(map(self._can_step, self._running)):
            self._deliver()
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        self._admit()
        if not self._closed and self._running:
            self._step()

    def _admit(self) -> bool:
        """Give free lanes to those who have waited longest."""
        admitted = False
        while self._waiting and any(not lane.busy for lane in self._lanes):
            job = self._waiting.popleft()
            try:
                self._begin(job)
                admitted = True
            except Exception as error:
                self._fail(job, error)
        return admitted

    def _begin(self, job: Job) -> None:
        job.began = time.perf_counter()
        placed = place(self._lanes, job.units, keeps_prefix=self._keeps_prefix)
        lane, known = placed.lane, placed.known
        lane.busy = True
        job.lane = lane
        self._running.append(job)
        if placed.source is not None:
            lane.content.keep(0)
            self._cut(lane)
            lane.content.keys[:] = placed.source.content.keys[:known]
            lane.content.ends[:] = placed.source.content.ends[:known]
            self._context.share(placed.source.id, lane.id, lane.content.position)
        elif known < len(lane.content.keys):
            lane.content.keep(known)
            known = known if self._cut(lane) else 0
        job.next = known
        job.cached_tokens = sum(map(length_of, job.units[:known]))
        job.drawer = Drawer(self._model, job.request, job.matcher)
        self._encode(job)

    def _encode(self, job: Job) -> None:
        owner = {slot: picture for _, picture in job.seen for slot in picture.slots}
        todo = deque((unit, owner[unit]) for unit in job.units[job.next :] if isinstance(unit, Slot))
        if self._encoder is None or not todo:
            return
        job.encoding = Encoding(
            todo,
            started=lambda done, total: None if job.cancelled else job.sink(Progress(done, total)),
            ended=lambda slot, rows: self._inbox.put(partial(self._encoded, job, slot, rows)),
            released=job.close_pictures,
        )
        if self._ahead:
            self._encoder.ask(job.encoding)
        self._look_ahead(job)
        if job.cancelled:  # `cancel` may have looked before there was an encoding
            self._encoder.drop(job.encoding)

    def _look_ahead(self, job: Job) -> None:
        """Ask for the tile that comes next, where that was not done ahead."""
        if not self._ahead and job.in_prompt and isinstance(job.units[job.next], Slot) and self._encoder is not None:
            assert job.encoding is not None
            self._encoder.ask(job.encoding)

    def _encoded(self, job: Job, slot: Slot, rows: Embeddings | BaseException) -> None:
        if job.over:
            return
        if isinstance(rows, BaseException):
            self._fail(job, rows)
        else:
            job.rows[slot] = rows

    def _can_step(self, job: Job) -> bool:
        if not job.in_prompt:
            return job.unread() < UNREAD
        unit = job.units[job.next]
        return isinstance(unit, int) or unit in job.rows

    def _step(self) -> None:
        """Rows of a picture, if some wait; then one batch with a token of each answer, and text of prompts."""
        began = time.perf_counter()
        encoding = self._encoder is not None and self._encoder.load > 0
        self._context.set_threads(self._threads.beside if encoding else self._threads.all)
        answers = [job for job in self._running if not job.in_prompt and job.unread() < UNREAD]
        prompts = [job for job in self._running if job.in_prompt]
        # Who waits for tiles of its own loses little by waiting; the others must get on.
        urgent = any(job.encoding is None or not job.encoding.todo for job in prompts)
        room = budget = self._pace.rows(len(answers), encoding, urgent=urgent)
        self._deliver()
        for job in prompts if room > 0 else ():
            if isinstance(slot := job.units[job.next], Slot) and slot in job.rows:
                room -= self._picture(job, slot, room)
                break  # the others have their turn in the steps to come
        batch = self._batch
        batch.clear()
        parts: list[tuple[Job, list[int], int]] = []
        for job in answers:
            if job.token is not None and not job.over:
                assert job.lane is not None
                parts.append((job, [job.token], batch.add(job.token, job.lane.content.position, job.lane.id)))
        for job in prompts:
            if room > 0 and not job.over and (tokens := job.text(min(room, batch.size - batch.count))):
                assert job.lane is not None
                last = job.next + len(tokens) == len(job.units)
                parts.append((job, tokens, batch.extend(tokens, job.lane.content.position, job.lane.id, last=last)))
                room -= len(tokens)
                self._running.remove(job)
                self._running.append(job)
        if parts:
            self._evaluate(parts)
        self._pace.note(time.perf_counter() - began, len(answers), budget - room, encoding)

    def _picture(self, job: Job, slot: Slot, room: int) -> int:
        """Evaluate some rows of an encoded tile, all of them where they look at each other; how many."""
        assert job.lane is not None
        rows = job.rows[slot]
        end = min(len(rows), job.offset + room) if slot.causal else len(rows)
        part = slice(job.offset, end)
        last = end == len(rows)
        positions = slot.at(job.lane.content.position)[:, part]
        answers = last and job.next + 1 == len(job.units)
        work = partial(
            self._context.decode_embeddings,
            rows[part],
            positions,
            causal=slot.causal,
            sequence=job.lane.id,
            logits=answers,
        )
        if not self._native([job], work):
            return 0
        count = end - job.offset
        job.offset = 0 if last else end
        if last:
            del job.rows[slot]
            job.lane.content.add(slot)
            job.next += 1
            self._look_ahead(job)
        self._running.remove(job)
        self._running.append(job)
        if answers:
            self._draw(job, -1)
        return count

    def _evaluate(self, parts: list[tuple[Job, list[int], int]]) -> None:
        if not self._native([job for job, _, _ in parts], partial(self._context.decode, self._batch)):
            return
        for job, tokens, index in parts:
            assert job.lane is not None
            for token in tokens:
                job.lane.content.add(token)
            if job.in_prompt:
                job.next += len(tokens)
                self._look_ahead(job)
            if not job.in_prompt:
                self._draw(job, index)

    def _native(self, jobs: list[Job], work: Callable[[], None]) -> bool:
        """Run a native call that `jobs` are part of; False where it failed, or was aborted as nobody wants it."""
        self._step_jobs = jobs
        try:
            work()
            return True
        except Aborted:
            self._step_jobs = []
            if not self._closed:
                self._context.allow()
            for job in jobs:
                job.offset = 0
                if not self._cut(job.lane):
                    self._fail(job, EngineError("the cache was lost as another request was cancelled"))
        except Exception as error:  # whose fault it is cannot be known
            for job in jobs:
                assert job.lane is not None
                job.lane.content.keep(0)
                self._cut(job.lane)
                self._fail(job, error)
        finally:
            self._step_jobs = []
        return False

    def _draw(self, job: Job, index: int) -> None:
        assert job.drawer is not None
        if job.made == 0:
            self._outbox.append((job, job.start_of_answer()))
        try:
            token = job.drawer.draw(self._context, index)
        except PocketVLMError as error:  # a grammar's: this request's alone
            self._fail(job, error)
            return
        if token is None:
            self._finish(job, Finished("stop"))
            return
        job.made += 1
        job.token = token.id
        self._outbox.append((job, token))
        if job.drawer.complete:
            self._finish(job, Finished("stop"))
        elif job.made >= job.limit:
            self._finish(job, Finished("length"))

    def _deliver(self) -> None:
        """Hand out what the last step made: now, so that the readers work while the next step is evaluated."""
        for job, event in self._outbox:
            if not job.cancelled:
                job.sink(event)
        self._outbox.clear()

    def _finish(self, job: Job, finished: Finished) -> None:
        self._outbox.append((job, finished))
        self._end(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._deliver()
        if not job.cancelled and not job.over:
            job.sink(error)
        self._end(job, failed=True)

    def _end(self, job: Job, *, failed: bool = False) -> None:
        """The job leaves its lane, whose cache stays for those who come. Harmless where it has left already."""
        if job.over:
            return
        job.over = True
        lane = job.lane
        if job in self._waiting:
            self._waiting.remove(job)
        if lane is not None:
            self._running.remove(job)
            if job.offset:
                self._cut(lane)
            self._clock += 1
            lane.used, lane.busy = self._clock, False
        if job.drawer is not None:
            job.drawer.close()
        job.rows.clear()
        if job.encoding is not None and self._encoder is not None:
            self._encoder.drop(job.encoding)
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
            )
            if job.made:
                self._seconds += _SMOOTH * (time.perf_counter() - job.began - self._seconds)

    def _cut(self, lane: Lane | None) -> bool:
        """Bring the native cache back to what the lane's content says; False where all had to go."""
        assert lane is not None
        if self._context.truncate(lane.content.position, lane.id):
            return True
        self._context.truncate(lane.content.keep(0), lane.id)
        return False
