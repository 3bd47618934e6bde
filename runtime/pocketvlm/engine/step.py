"""One step over all running requests: a token of every answer and some rows of the prompts are evaluated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pocketvlm.devices import allowed_cpus
from pocketvlm.engine.engine import Event, Finished
from pocketvlm.engine.job import Job
from pocketvlm.engine.lanes import Lanes
from pocketvlm.engine.lookup import Lookup
from pocketvlm.engine.pace import Pace
from pocketvlm.engine.run import Run, next_run
from pocketvlm.engine.speculation import DRAFTED, Speculation
from pocketvlm.errors import EngineError, PocketVLMError
from pocketvlm.native.context import Aborted, Batch, Context, Logits
from pocketvlm.native.table import TokenTable

UNREAD = 32  # events: a reader that falls behind by more makes its answer wait
_READING = 0.0005  # seconds left to those who read


@dataclass(frozen=True)
class Threads:
    """One budget of cores: `all` for the decoder while the side thread rests; else `beside`, and it the `rest`."""

    all: int
    beside: int

    @property
    def rest(self) -> int:
        return self.all - self.beside


class Stepper:
    """Evaluates and draws; all of it on the scheduler's thread, but for `abort_unwanted` and `stop`.

    `moved` is called when a prompt has gone on, `over` when a request has ended: with an error, or None.
    Without its `table`, tokens and pictures take turns; without `speculation`, nothing is drafted.
    """

    def __init__(
        self,
        context: Context,
        lanes: Lanes,
        threads: Threads,
        *,
        speculation: Speculation | None,
        moved: Callable[[Job], None],
        over: Callable[[Job, BaseException | None], None],
    ) -> None:
        self._context, self._lanes, self._threads = context, lanes, threads
        self._moved, self._over = moved, over
        self._batch = Batch(context.n_batch)
        self._crowded = threads.all >= allowed_cpus()
        self._pace = Pace(context.n_batch)
        self._speculation = speculation
        self.table: TokenTable | None = None
        self._outbox: list[tuple[Job, Event]] = []
        self._evaluated: list[Job] = []  # in the native call that runs now
        self._stopped = False
        self._took = 0.0  # seconds, by the last step with answers
        self.running: list[Job] = []  # those whose prompt was served last come last

    def can_step(self) -> bool:
        return any(map(_can_step, self.running))

    def abort_unwanted(self) -> None:
        """From any thread: stop the native call that runs, where nobody waits for it any more."""
        jobs = self._evaluated
        if jobs and all(job.cancelled for job in jobs):
            self._context.abort()

    def stop(self) -> None:
        """From any thread: the native call that runs, and all that follow, end at once."""
        self._stopped = True
        self._context.abort()

    def deliver(self) -> None:
        """Hand out what the last step made: now, so that the readers work while the next step is evaluated."""
        for job, event in self._outbox:
            if not job.cancelled:
                job.sink(event)
        self._outbox.clear()

    def step(self, *, shared: bool) -> None:
        """Rows of pictures, if some wait; then one batch with a token of each answer, and text of prompts.

        `shared`: the side thread works, and has its part of the cores.
        """
        self._context.set_threads(self._threads.beside if shared else self._threads.all)
        answers = [job for job in self.running if not job.in_prompt and job.unread() < UNREAD]
        prompts = [job for job in self.running if job.in_prompt and not job.aside and not job.waits]
        # Who waits for tiles of its own loses little by waiting; the others must get on.
        urgent = any(job.encoding is None or not job.encoding.todo for job in prompts)
        room = budget = self._pace.rows(len(answers), shared, urgent=urgent)
        if answers and shared:
            self._rest()
        began = time.perf_counter()
        for job in prompts if room > 0 else ():
            if run := self._next_run(job, room, None if answers else self.table):  # else tokens go with theirs
                room -= self._run(job, run)
                break  # the others have their turn in the steps to come
        batch = self._batch
        batch.clear()
        parts: list[tuple[Job, list[int], int]] = []
        answers = [job for job in answers if not job.over]
        alone = room == budget and not (room > 0 and any(map(_can_step, prompts)))
        drafts = self._drafts(answers, shared) if alone else {}
        for job in answers:
            if job.token is not None:
                lane = job.in_lane
                parts.append((job, [job.token, *drafts.get(job, ())], batch.count))
                batch.extend(parts[-1][1], lane.content.position, lane.id, every=True)
        for job in prompts:
            if parts and self._context.even:
                self._text(parts)
                parts.clear()
                batch.clear()
            if room > 0 and not job.over and (tokens := job.text(min(room, batch.size - batch.count))):
                lane = job.in_lane
                last = job.next + len(tokens) == len(job.units)
                parts.append((job, tokens, batch.extend(tokens, lane.content.position, lane.id, last=last)))
                room -= len(tokens)
                self._to_the_end(job)
        if parts:
            seconds = self._text(parts)
            if alone and seconds and self._speculation is not None:
                self._speculation.note(seconds, batch.count, shared)
        else:
            self.deliver()
        took = time.perf_counter() - began
        if answers:
            self._took = took
        if not any(drafts.values()):
            self._pace.note(took, len(answers), budget - room, shared)

    def _rest(self) -> None:
        """Leave time to a tile that waits for it, if one does, and to those who read, where all cores are taken.

        Tokens go out behind the first: a step that took long has less of it, so both together vary less than steps do.
        Without the second, the system may let each thread on the way to a reader wait for the next tick of its clock.
        """
        encodings = (job.encoding for job in self.running if job.encoding is not None)
        helper = next(filter(None, (encoding.helper for encoding in encodings)), None)
        if helper is None and not self._crowded:
            return
        if helper is not None:
            helper.follow()
            time.sleep(self._pace.rest(self._took))
        self.deliver()
        time.sleep(_READING)

    def _drafts(self, answers: list[Job], shared: bool) -> dict[Job, list[int]]:
        """What to evaluate beside the pending tokens: of all drafts, the likeliest tokens."""
        if self._speculation is None:
            return {}
        drafts: dict[Job, list[int]] = {}
        for job in answers:
            if job.lookup is None:
                job.lookup = Lookup([unit if isinstance(unit, int) else -at for at, unit in enumerate(job.units, 1)])
                assert job.token is not None
                job.lookup.add(job.token)
            drafts[job] = job.lookup.draft(min(DRAFTED, job.limit - job.made - 1))
        likely = [
            (chance, job) for job, draft in drafts.items() if job.lookup for chance in job.lookup.chances(len(draft))
        ]
        likely.sort(key=lambda one: -one[0])  # stable, and chances fall: what is left of a draft is its beginning
        most = min(len(likely), self._batch.size - len(answers))
        taken = self._speculation.drafted(len(answers), [chance for chance, _ in likely[:most]], shared)
        counts = Counter(job for _, job in likely[:taken])
        return {job: draft[: counts[job]] for job, draft in drafts.items()}

    def _to_the_end(self, job: Job) -> None:
        self.running.remove(job)
        self.running.append(job)

    def _next_run(self, job: Job, room: int, table: TokenTable | None) -> Run | None:
        at = job.in_lane.content.position
        return next_run(job.upcoming, job.rows, room, self._context, table, position=at, offset=job.offset)

    def _run(self, job: Job, run: Run) -> int:
        """Evaluate it; how many rows that were."""
        lane = job.in_lane
        answers = not run.offset and job.next + len(run.units) == len(job.units)
        work = partial(
            self._context.decode_embeddings,
            run.rows,
            run.positions,
            causal=run.causal,
            sequence=lane.id,
            logits=answers,
        )
        if not self._native([job], work):
            return 0
        job.offset = run.offset
        if run.units:
            job.evaluated(run.units)
            self._moved(job)
        self._to_the_end(job)
        if answers:
            self.draw(job, -1)
        return len(run.rows)

    def _text(self, parts: list[tuple[Job, list[int], int]]) -> float:
        """Evaluate the batch: for each job its tokens, and where in the batch the first logits of it are.

        The seconds that it took, without what follows; 0 where it failed.
        """
        began = time.perf_counter()
        if not self._native([job for job, _, _ in parts], partial(self._context.decode, self._batch)):
            return 0.0
        if self._speculation is not None:
            self._context.wait()
        seconds = time.perf_counter() - began
        for job, tokens, index in parts:
            if not job.in_prompt:
                self._verify(job, tokens, index)
                continue
            job.evaluated(tokens)
            self._moved(job)
            if not job.in_prompt:
                self.draw(job, index)
        return seconds

    def _verify(self, job: Job, tokens: list[int], index: int) -> None:
        """Draw what follows the first of `tokens`; what follows the next, too, where that is what was drawn."""
        lane = job.in_lane
        lane.content.add(tokens[0])
        self.draw(job, index, drafted=len(tokens) - 1)
        for number, guess in enumerate(tokens[1:], 1):
            if job.over or job.token != guess:
                self._lanes.cut(lane)
                break
            lane.content.add(guess)
            self.draw(job, index + number, accepted=True)

    def _native(self, jobs: list[Job], work: Callable[[], None]) -> bool:
        """Run a native call that `jobs` are part of; False where it failed, or was aborted as nobody wants it."""
        self._evaluated = jobs
        self.deliver()
        try:
            work()
            return True
        except Aborted:
            self._evaluated = []
            if not self._stopped:
                self._context.allow()
            for job in jobs:
                job.offset = 0
                if not self._lanes.cut(job.in_lane):
                    self._over(job, EngineError("the cache was lost as another request was cancelled"))
        except Exception as error:  # whose fault it is cannot be known
            for job in jobs:
                self._lanes.clear(job.in_lane)
                self._over(job, error)
        finally:
            self._evaluated = []
        return False

    def draw(self, job: Job, at: int | Logits, *, drafted: int = 0, accepted: bool = False) -> None:
        """What follows its prompt or its last token, whose logits are at an index of the last batch, or given."""
        assert job.drawer is not None
        now = time.perf_counter()
        if job.made == 0:
            job.answered = now
            self._outbox.append((job, job.start_of_answer()))
        try:
            ms = 1000 * (now - job.answered)
            token = job.drawer.draw(self._context, at, drafted=drafted, accepted=accepted, ms=ms)
        except PocketVLMError as error:  # a grammar's: this request's alone
            self._over(job, error)
            return
        if token is None:
            self._finish(job, Finished("stop"))
            return
        job.drafted += drafted
        job.accepted += accepted
        if job.lookup is not None:
            job.lookup.add(token.id)
        job.made += 1
        job.token = token.id
        if job.request.buffered and job.made > 1:
            job.kept.append(token)
        else:
            self._outbox.append((job, token))
        if job.drawer.complete:
            self._finish(job, Finished("stop"))
        elif job.made >= job.limit:
            self._finish(job, Finished("length"))

    def _finish(self, job: Job, finished: Finished) -> None:
        self._outbox += [(job, event) for event in (*job.kept, finished)]
        self._over(job, None)


def _can_step(job: Job) -> bool:
    if not job.in_prompt:
        return job.unread() < UNREAD
    unit = job.units[job.next]
    return not job.aside and not job.waits and (isinstance(unit, int) or unit in job.rows)
