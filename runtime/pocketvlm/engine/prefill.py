"""Prompts evaluated beside running answers: in a context of their own, whose cells then move to the lane.

A row of a prompt in the same step makes every answer wait: one costs a CPU nearly as much as a token, and 64 in one go
as much as ten. Evaluated on the side thread, by other cores, they cost the answers some memory bandwidth.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pocketvlm.engine.cache import advance_of, length_of
from pocketvlm.engine.job import Job
from pocketvlm.engine.run import next_run
from pocketvlm.engine.side import SideThread, Task
from pocketvlm.native.context import Aborted, Batch, Cells, Context, Logits
from pocketvlm.native.table import TokenTable
from pocketvlm.vision.encoder import Embeddings, Slot
from pocketvlm.vision.units import Unit, tokens_before_slots

_log = logging.getLogger(__name__)
ROWS = 128  # of a prompt at once
_WORTH = 32  # rows: fewer go with the steps of the answers


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What a chunk came to; `logits` after a prompt's last: copies, so that nothing of the side's context is used."""

    cells: Cells
    logits: Logits | None


class Side:
    """The context on the side: made when a prompt enters, closed when the last has left. For the side thread only.

    `make` gives one with as many sequences as there are lanes.
    """

    def __init__(self, make: Callable[[], Context]) -> None:
        self._make = make
        self.table: TokenTable | None = None
        self._context: Context | None = None
        self._inside: set[int] = set()
        self._batch = Batch(ROWS)

    def evaluate(self, chunk: Chunk) -> Evaluated:
        if self._context is None:
            self._context = self._make()
        context, sequence = self._context, chunk.sequence
        if chunk.enters is not None or not chunk.position:
            self._inside.add(sequence)
            context.truncate(0, sequence)
        if chunk.enters is not None:
            context.add_cells(chunk.enters, sequence)
        position, offset, units = chunk.position, 0, list(chunk.units)
        while units:
            run = next_run(units, chunk.rows, ROWS, context, self.table, position=position, offset=offset)
            if run is None:
                tokens = tokens_before_slots(units)
                self._batch.clear()
                self._batch.extend(tokens, position, sequence, last=chunk.last)
                context.decode(self._batch)
                done: Sequence[Unit] = tokens
            else:
                context.decode_embeddings(
                    run.rows, run.positions, causal=run.causal, sequence=sequence, logits=chunk.last
                )
                done, offset = run.units, run.offset
            position += sum(map(advance_of, done))
            units = units[len(done) :]
        logits = context.logits() if chunk.last else None
        found = Evaluated(context.cells(sequence, chunk.position, position), logits)
        if chunk.last:
            self.leave(sequence)
        return found

    def leave(self, sequence: int) -> None:
        self._inside.discard(sequence)
        if self._context is not None:
            self._context.truncate(0, sequence)
            if not self._inside:
                self._context.close()
                self._context = None

    def stop(self) -> None:
        if (context := self._context) is not None:
            context.abort()

    def allow(self) -> None:
        if (context := self._context) is not None:
            context.allow()


@dataclass(eq=False)
class Chunk:
    """Units of a prompt that stand at `position`, with the `rows` of slots. A task for the side thread.

    `enters`: what its sequence holds before it, where the side does not know. Its sequence leaves after the `last`.
    """

    side: Side
    sequence: int
    units: Sequence[Unit]
    rows: Mapping[Slot, Embeddings]
    position: int
    enters: Cells | None
    last: bool
    ended: Callable[[Evaluated | BaseException], None]
    first: bool = True
    again: bool = False
    dropped: bool = False

    def run(self) -> Callable[[], None]:
        return partial(self.ended, self._evaluated())

    def _evaluated(self) -> Evaluated | BaseException:
        try:
            return self.side.evaluate(self)
        except BaseException as error:  # raised again by the scheduler's thread
            return error

    def wanted(self, _: Iterable[Task], /) -> bool:
        return False

    def stop(self) -> None:
        self.side.stop()

    def allow(self) -> None:
        self.side.allow()

    def left(self) -> None:
        """Its request tells the side to leave."""


@dataclass(eq=False)
class _Leave:
    side: Side
    sequence: int
    first: bool = True
    again: bool = False
    dropped: bool = False

    def run(self) -> Callable[[], None]:
        self.side.leave(self.sequence)
        return lambda: None

    def wanted(self, _: Iterable[Task], /) -> bool:
        return True

    def stop(self) -> None: ...
    def allow(self) -> None: ...
    def left(self) -> None: ...


class Prefill:
    """Who is evaluated on the side, and how far; on the scheduler's thread.

    The lane gets each chunk's cells before the next chunk is asked for, so it can be taken back at any time.
    `room` is how many cells the side has. `post` runs a command on the scheduler's thread, `moved` is told of progress,
    `answer` gets the logits that follow a prompt.
    """

    def __init__(
        self,
        context: Context,
        thread: SideThread,
        make: Callable[[], Context],
        *,
        room: int,
        post: Callable[[Callable[[], None]], None],
        moved: Callable[[Job], None],
        answer: Callable[[Job, Logits], None],
    ) -> None:
        self._context, self._thread, self._room = context, thread, room
        self._post, self._moved, self._answer = post, moved, answer
        self.side = Side(make)
        self._chunks: dict[Job, Chunk | None] = {}  # of those on the side: what is evaluated now
        self._refused: set[Job] = set()

    def advance(self, running: Sequence[Job]) -> None:
        """Between two steps: prompts enter, go on, and leave."""
        answers = any(not job.in_prompt for job in running)
        for job in running:
            if answers and not job.aside and self._fits(job):
                self._room -= job.total
                self._chunks[job] = None
                job.aside = True
                self._next(job, enters=True)
            elif job.aside and self._chunks[job] is None:
                self._next(job)

    def drop(self, job: Job) -> None:
        """It is over. Harmless where it is not on the side."""
        self._refused.discard(job)
        if job.aside:
            if (chunk := self._chunks[job]) is not None:
                self._thread.drop(chunk)
            self._leave(job)

    def chunk(self, job: Job) -> Chunk | None:
        """What of it is evaluated now; from any thread."""
        return self._chunks.get(job)

    def _fits(self, job: Job) -> bool:
        if not job.in_prompt or job.offset or job in self._refused:
            return False
        rows = 0
        for unit in job.units[job.next :]:
            rows += length_of(unit)
            if rows >= _WORTH:
                return job.total <= self._room and bool(self._units(job))
        return False

    def _next(self, job: Job, *, enters: bool = False) -> None:
        """Ask for the next chunk, where there is one now."""
        units = self._units(job)
        if not units:
            return
        lane = job.in_lane
        position = lane.content.position
        try:
            known = self._context.cells(lane.id, 0, position) if enters and position else None
        except Exception:  # whatever it is, the steps can do it
            _log.warning("a prompt could not be moved aside: it goes with the answers", exc_info=True)
            self._refused.add(job)
            self._forget(job)
            return
        chunk = Chunk(
            self.side,
            lane.id,
            units,
            {unit: job.rows[unit] for unit in units if isinstance(unit, Slot)},
            position,
            known,
            job.next + len(units) == len(job.units),
            lambda found: self._post(lambda: self._ended(job, found)),
        )
        self._chunks[job] = chunk
        self._thread.ask(chunk)

    def _units(self, job: Job) -> list[Unit]:
        """Up to `ROWS` rows, or one slot of more."""
        found: list[Unit] = []
        rows = 0
        for unit in job.units[job.next :]:
            rows += length_of(unit)
            if (isinstance(unit, Slot) and unit not in job.rows) or (found and rows > ROWS):
                break
            found.append(unit)
        return found

    def _ended(self, job: Job, found: Evaluated | BaseException) -> None:
        if job.over or (chunk := self._chunks.get(job)) is None:
            return
        self._chunks[job] = None
        if isinstance(found, Aborted):  # the engine closes
            return
        try:
            if isinstance(found, BaseException):
                raise found
            self._context.add_cells(found.cells, job.in_lane.id)
        except Exception:  # whatever it is, the steps can do it
            _log.warning("a prompt could not be evaluated aside: it goes with the answers", exc_info=True)
            self._refused.add(job)
            self._leave(job)
            return
        job.evaluated(chunk.units)
        if chunk.last:
            self._forget(job)
        self._moved(job)
        if found.logits is not None:
            self._answer(job, found.logits)

    def _leave(self, job: Job) -> None:
        self._forget(job)
        self._thread.ask(_Leave(self.side, job.in_lane.id))

    def _forget(self, job: Job) -> None:
        job.aside = False
        del self._chunks[job]
        self._room += job.total
