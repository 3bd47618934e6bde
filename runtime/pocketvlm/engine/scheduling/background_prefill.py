"""Prompts evaluated by the background worker while answers run, in a context of their own.

A prompt row in the same step makes every answer wait: one costs a CPU nearly as much as a token, and 64 at once as much
as ten. On the background worker's cores they cost the answers only some memory bandwidth. After each chunk its cells
are copied to the request's sequence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pocketvlm.engine.background.worker import BackgroundTask, BackgroundWorker
from pocketvlm.engine.kv_cache.prefix_cache import advance_of, length_of
from pocketvlm.engine.scheduling.embedding_batch import next_embedding_batch
from pocketvlm.engine.scheduling.request_state import RequestState
from pocketvlm.native.context import Aborted, Batch, Cells, Context, Logits
from pocketvlm.native.token_embeddings import TokenEmbeddings
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan
from pocketvlm.vision.prompt_units import PromptUnit, leading_tokens

_log = logging.getLogger(__name__)
CHUNK_ROWS = 128  # rows of a prompt in one chunk
_MIN_ROWS = 32  # a shorter rest of a prompt goes with the steps of the answers


@dataclass(frozen=True, eq=False)
class PrefillResult:
    """What a chunk left: its cells, and the logits after a prompt's last chunk.

    Both are copies, so that the scheduler never touches the prefill context.
    """

    cells: Cells
    logits: Logits | None


@dataclass(frozen=True)
class ChunkEvaluated:
    """The result of a request's chunk, or the error that prevented it."""

    request: RequestState
    result: PrefillResult | BaseException


class PrefillContext:
    """The context of background prompts. Made for the first prompt, closed after the last. Worker thread only.

    `make` returns a context with as many sequences as the scheduler's.
    """

    def __init__(self, make: Callable[[], Context]) -> None:
        self._make = make
        self.token_embeddings: TokenEmbeddings | None = None
        self._context: Context | None = None
        self._used_sequences: set[int] = set()
        self._batch = Batch(CHUNK_ROWS)

    def evaluate(self, chunk: PrefillChunk) -> PrefillResult:
        if self._context is None:
            self._context = self._make()
        context, sequence = self._context, chunk.sequence
        if chunk.prefix is not None or not chunk.position:
            self._used_sequences.add(sequence)
            context.truncate(0, sequence)
        if chunk.prefix is not None:
            context.add_cells(chunk.prefix, sequence)
        position, row, units = chunk.position, 0, list(chunk.units)
        while units:
            batch = next_embedding_batch(
                units, chunk.embeddings, CHUNK_ROWS, context, self.token_embeddings, position=position, row=row
            )
            if batch is None:
                tokens = leading_tokens(units)
                self._batch.clear()
                self._batch.extend(tokens, position, sequence, last=chunk.last)
                context.decode(self._batch)
                evaluated: Sequence[PromptUnit] = tokens
            else:
                context.decode_embeddings(
                    batch.rows, batch.positions, causal=batch.causal, sequence=sequence, logits=chunk.last
                )
                evaluated, row = batch.units, batch.next_row
            position += sum(map(advance_of, evaluated))
            units = units[len(evaluated) :]
        logits = context.logits() if chunk.last else None
        result = PrefillResult(context.cells(sequence, chunk.position, position), logits)
        if chunk.last:
            self.release(sequence)
        return result

    def release(self, sequence: int) -> None:
        self._used_sequences.discard(sequence)
        if self._context is not None:
            self._context.truncate(0, sequence)
            if not self._used_sequences:
                self._context.close()
                self._context = None

    def stop(self) -> None:
        if (context := self._context) is not None:
            context.abort()

    def allow(self) -> None:
        if (context := self._context) is not None:
            context.allow()


@dataclass(eq=False)
class PrefillChunk:
    """A background task: the `units` of a prompt from `position` on, with the `embeddings` of their spans.

    `prefix` holds the cells before it where the prefill context does not have them. The `last` chunk releases its
    sequence.
    """

    context: PrefillContext
    sequence: int
    units: Sequence[PromptUnit]
    embeddings: Mapping[EmbeddingSpan, Embeddings]
    position: int
    prefix: Cells | None
    last: bool
    report: Callable[[PrefillResult | BaseException], None]
    urgent: bool = True
    repeats: bool = False
    dropped: bool = False

    def run(self) -> Callable[[], None]:
        result: PrefillResult | BaseException
        try:
            result = self.context.evaluate(self)
        except BaseException as error:  # raised again on the scheduler's thread
            result = error
        return partial(self.report, result)

    def needed_by(self, _: Iterable[BackgroundTask], /) -> bool:
        return False

    def stop(self) -> None:
        self.context.stop()

    def allow(self) -> None:
        self.context.allow()

    def release(self) -> None:
        """Nothing to free: the request asks for a `_ReleaseSequence` itself."""


@dataclass(eq=False)
class _ReleaseSequence:
    context: PrefillContext
    sequence: int
    urgent: bool = True
    repeats: bool = False
    dropped: bool = False

    def run(self) -> Callable[[], None]:
        self.context.release(self.sequence)
        return lambda: None

    def needed_by(self, _: Iterable[BackgroundTask], /) -> bool:
        return True

    def stop(self) -> None: ...
    def allow(self) -> None: ...
    def release(self) -> None: ...


class BackgroundPrefill:
    """Decides which prompts go to the background worker and hands over their chunks. Scheduler's thread only.

    A request's sequence gets each chunk's cells before the next chunk is asked for, so the request can go back to the
    scheduler's steps at any time. `free_cells` is the size of the prefill context. `post` sends a result to the
    scheduler.
    """

    def __init__(
        self,
        context: Context,
        worker: BackgroundWorker,
        make: Callable[[], Context],
        *,
        free_cells: int,
        post: Callable[[ChunkEvaluated], None],
    ) -> None:
        self._context, self._worker, self._free_cells = context, worker, free_cells
        self._post = post
        self.prefill_context = PrefillContext(make)
        self._chunks: dict[RequestState, PrefillChunk | None] = {}  # by request in the background; None between chunks
        self._refused: set[RequestState] = set()

    def advance(self, running: Sequence[RequestState]) -> None:
        """Between two steps: move prompts to the background worker and ask for the next chunks."""
        answers = any(not request.in_prompt for request in running)
        for request in running:
            if answers and not request.in_background and self._fits(request):
                self._free_cells -= request.prompt_tokens
                self._chunks[request] = None
                request.in_background = True
                self._ask_next(request, enters=True)
            elif request.in_background and self._chunks[request] is None:
                self._ask_next(request)

    def drop(self, request: RequestState) -> None:
        """Forget a request that is over. Does nothing where it is not in the background."""
        self._refused.discard(request)
        if request.in_background:
            if (chunk := self._chunks[request]) is not None:
                self._worker.drop(chunk)
            self._leave(request)

    def finish_chunk(self, evaluated: ChunkEvaluated) -> Logits | None:
        """Copy a chunk's cells to the request's sequence. Return the logits after the prompt's last chunk."""
        request, result = evaluated.request, evaluated.result
        if request.finished or (chunk := self._chunks.get(request)) is None:
            return None
        self._chunks[request] = None
        if isinstance(result, Aborted):  # the engine closes
            return None
        try:
            if isinstance(result, BaseException):
                raise result
            self._context.add_cells(result.cells, request.running_sequence.id)
        except Exception:  # whatever it is, the scheduler's steps can evaluate the prompt
            _log.warning("a prompt could not be evaluated in the background: it goes with the answers", exc_info=True)
            self._refused.add(request)
            self._leave(request)
            return None
        request.advance(chunk.units)
        if chunk.last:
            self._forget(request)
        return result.logits

    def _fits(self, request: RequestState) -> bool:
        if not request.in_prompt or request.next_row or request in self._refused:
            return False
        rows = 0
        for unit in request.units[request.next_unit :]:
            rows += length_of(unit)
            if rows >= _MIN_ROWS:
                return request.prompt_tokens <= self._free_cells and bool(self._next_units(request))
        return False

    def _ask_next(self, request: RequestState, *, enters: bool = False) -> None:
        """Ask for the next chunk, where its embeddings are there."""
        units = self._next_units(request)
        if not units:
            return
        sequence = request.running_sequence
        position = sequence.content.position
        try:
            prefix = self._context.cells(sequence.id, 0, position) if enters and position else None
        except Exception:  # whatever it is, the scheduler's steps can evaluate the prompt
            _log.warning("a prompt could not be moved to the background: it goes with the answers", exc_info=True)
            self._refused.add(request)
            self._forget(request)
            return
        chunk = PrefillChunk(
            self.prefill_context,
            sequence.id,
            units,
            {unit: request.embeddings[unit] for unit in units if isinstance(unit, EmbeddingSpan)},
            position,
            prefix,
            request.next_unit + len(units) == len(request.units),
            lambda result: self._post(ChunkEvaluated(request, result)),
        )
        self._chunks[request] = chunk
        self._worker.ask(chunk)

    def _next_units(self, request: RequestState) -> list[PromptUnit]:
        """Up to `CHUNK_ROWS` rows, or one longer span."""
        units: list[PromptUnit] = []
        rows = 0
        for unit in request.units[request.next_unit :]:
            rows += length_of(unit)
            missing = isinstance(unit, EmbeddingSpan) and unit not in request.embeddings
            if missing or (units and rows > CHUNK_ROWS):
                break
            units.append(unit)
        return units

    def _leave(self, request: RequestState) -> None:
        self._forget(request)
        self._worker.ask(_ReleaseSequence(self.prefill_context, request.running_sequence.id))

    def _forget(self, request: RequestState) -> None:
        request.in_background = False
        del self._chunks[request]
        self._free_cells += request.prompt_tokens
