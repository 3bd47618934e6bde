"""Many requests on one context: which wait, which run, and how each ends.

One thread does all of it, step by step. Other threads send it commands, which it reads between two steps.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from pocketvlm.engine.background.encode_task import EncodeTask, EncodeUpdate, ImagesReleased, TileEncoded, TileStarted
from pocketvlm.engine.background.worker import BackgroundWorker
from pocketvlm.engine.interface import EncodeProgress, Statistics
from pocketvlm.engine.kv_cache.prefix_cache import length_of
from pocketvlm.engine.kv_cache.sequence_pool import SequencePool
from pocketvlm.engine.scheduling.background_prefill import BackgroundPrefill, ChunkEvaluated
from pocketvlm.engine.scheduling.commands import AddTile, Cancel, Command, RunBetweenSteps, Submit, Wake
from pocketvlm.engine.scheduling.request_state import RequestState
from pocketvlm.engine.scheduling.step import StepRunner
from pocketvlm.engine.scheduling.token_sampler import TokenSampler
from pocketvlm.engine.speculative.draft_length import DraftLengthPolicy
from pocketvlm.engine.threads import ThreadBudget
from pocketvlm.errors import EngineClosedError, EngineError
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.token_embeddings import TokenEmbeddings
from pocketvlm.vision.encoder import EmbeddingSpan, PreparedImage, Vision

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Scheduler:
    """Owns the context from now on. Requests emit events on its thread, the background worker's or the closing one.

    `load_token_embeddings` is called on its thread; with its result, text and pictures share a batch.
    `prefill_context` makes the context of background prompts; without it, prompts go with the answers' steps. With
    `adapts`, answers have fewer threads while other programs compute.
    """

    def __init__(
        self,
        model: Model,
        vision: Vision | None,
        context: Context,
        *,
        parallel: int,
        threads: ThreadBudget,
        load_token_embeddings: Callable[[], TokenEmbeddings | None] | None = None,
        draft_policy: DraftLengthPolicy | None = None,
        prefill_context: Callable[[], Context] | None = None,
        adapts: bool = True,
    ) -> None:
        self._model, self._vision = model, vision
        self._recurrent = model.recurrent  # kept: `cancel` may come when the model is closed
        self._sequences = SequencePool(context, parallel)
        self._steps = StepRunner(
            context,
            self._sequences,
            threads,
            draft_policy=draft_policy,
            adapts=adapts,
            on_prompt_progress=self._on_prompt_progress,
            on_finished=self._on_finished,
        )
        self._load_token_embeddings = load_token_embeddings
        self._encode_ahead = threads.background > 0
        # Where decoder and encoder take turns, large batches cost less and small ones gain nothing.
        self._min_batch_rows = 0 if self._encode_ahead else context.n_batch
        self._worker = BackgroundWorker()
        self._prefill: BackgroundPrefill | None = None
        if prefill_context is not None:
            self._prefill = BackgroundPrefill(
                context, self._worker, prefill_context, free_cells=context.n_ctx, post=self._post
            )
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._waiting: deque[RequestState] = deque()
        self._lock = threading.Lock()  # guards the next three
        self._open_requests = 0
        self._closed = False
        self._statistics = Statistics(parallel=parallel)
        self._step_numbers = itertools.count()
        self._running_step: int | None = None
        self._thread = threading.Thread(target=self._run, name="pocketvlm-scheduler", daemon=True)
        self._thread.start()

    # --- from any thread

    def submit(self, request: RequestState) -> None:
        """Queue a request. Raises EngineClosedError, and then the request emits nothing."""
        with self._lock:
            self._require_open()
            self._open_requests += 1
            self._post(Submit(request))  # within the lock: `close` must not post its last command before

    def cancel(self, request: RequestState) -> None:
        """End a request at whatever stage. It emits nothing more once the scheduler has read the command."""
        request.cancelled = True
        if (task := request.encode_task) is not None:
            self._worker.drop(task)
        if not self._recurrent:  # aborting an evaluation of these could cost others their cache
            self._steps.abort_unwanted()
        self._post(Cancel(request))

    def run_between_steps(self, work: Callable[[SequencePool], _T]) -> _T:
        """Call `work` with the sequences while nothing is evaluated, and return its result."""
        result: Future[_T] = Future()
        with self._lock:
            self._require_open()
            self._post(RunBetweenSteps(work, result))
        return result.result()

    def wake(self) -> None:
        """Look again for work: a reader that had fallen behind has caught up."""
        self._post(Wake())

    def statistics(self) -> Statistics:
        running = len(self._steps.running)
        with self._lock:
            queued = max(0, self._open_requests - running)
            encoding = sum(isinstance(task, EncodeTask) for task in self._worker.tasks)
            return replace(
                self._statistics,
                running=running,
                queued=queued,
                encoding=encoding,
                steps=self._steps.steps,
                threads_of_steps=self._steps.threads_of_steps,
            )

    @property
    def progress(self) -> tuple[int | None, int | None]:
        """The numbers of the running step and of the running background work, rising with time; None while idle."""
        return self._running_step, self._worker.progress

    @property
    def max_branches(self) -> int:
        """In how many ways a sequence can be continued at once."""
        return self._sequences.max_branches

    def close(self) -> None:
        """End all requests with EngineClosedError. Returns when nothing native runs any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._steps.stop()
        self._worker.close()
        self._post(Wake())
        self._thread.join()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the model is closed")

    def _post(self, command: Command) -> None:
        self._inbox.put(command)

    # --- on the scheduler's thread

    def _run(self) -> None:
        self._survive(self._read_token_embeddings)
        while not self._closed:
            self._survive(self._turn)
        self._survive(self._steps.deliver)  # events of the last step: their readers wait for them
        while not self._inbox.empty():  # a request may have come with the close
            self._survive(partial(self._handle, self._inbox.get()))
        for request in [*self._steps.running, *self._waiting]:
            self._fail(request, EngineClosedError("the model is closed"))

    def _read_token_embeddings(self) -> None:
        if self._load_token_embeddings is None:
            return
        self._steps.token_embeddings = table = self._load_token_embeddings()
        if self._prefill is not None:
            self._prefill.prefill_context.token_embeddings = table

    def _survive(self, work: Callable[[], None]) -> None:
        """Run `work`. After an unexpected error fail all requests: their readers must not wait for ever."""
        try:
            work()
        except BaseException as error:
            _log.exception("the scheduler failed")
            for request in [*self._steps.running, *self._waiting]:
                self._fail(request, EngineError(f"the engine failed: {type(error).__name__}"))
            self._sequences.reset()

    def _turn(self) -> None:
        """Handle commands, waiting for one where there is nothing to do; then run a step."""
        started = self._start_waiting()
        if not started and not self._steps.can_step():
            self._steps.deliver()
            self._handle(self._inbox.get())
        while not self._inbox.empty():
            self._handle(self._inbox.get())
        self._start_waiting()
        if not self._closed and self._steps.running:
            self._running_step = next(self._step_numbers)
            try:
                if self._prefill is not None:
                    self._prefill.advance(self._steps.running)
                self._steps.step(shared=self._worker.busy)
            finally:
                self._running_step = None

    def _handle(self, command: Command) -> None:
        match command:
            case Submit(request):
                self._waiting.append(request)
            case Cancel(request):
                self._end(request)
            case AddTile(request, encoded):
                self._add_tile(request, encoded)
            case ChunkEvaluated(request):
                self._finish_chunk(request, command)
            case RunBetweenSteps(work, result):
                try:
                    result.set_result(work(self._sequences))
                except Exception as error:  # the caller gets it
                    result.set_exception(error)
            case Wake():
                pass

    def _start_waiting(self) -> bool:
        """Give free sequences to the requests that have waited longest."""
        started = False
        while self._waiting and self._sequences.free:
            request = self._waiting.popleft()
            try:
                self._start(request)
                started = True
            except Exception as error:  # it concerns this request alone
                self._fail(request, error)
        return started

    def _start(self, request: RequestState) -> None:
        request.started_at = time.perf_counter()
        request.sequence, known = self._sequences.acquire(request.units)
        self._steps.running.append(request)
        request.next_unit = known
        request.checkpoint_after = self._sequences.checkpoint_counts(request.sequence, request.prompt, known)
        request.cached_tokens = sum(map(length_of, request.units[:known]))
        request.sampler = TokenSampler(self._model, request.generation, request.matcher)
        request.min_batch_rows = self._min_batch_rows
        self._encode(request)

    def _encode(self, request: RequestState) -> None:
        """Take tiles from the embedding cache; let the background worker encode the others."""
        image_of = {span: prepared for _, prepared in request.images for span in prepared.spans}
        tiles: deque[tuple[EmbeddingSpan, PreparedImage]] = deque()
        for span in (unit for unit in request.units[request.next_unit :] if isinstance(unit, EmbeddingSpan)):
            for tile in span.tiles:
                if (rows := image_of[span].recall(tile)) is not None:
                    request.add_tile(tile, rows)
                else:
                    tiles.append((tile, image_of[span]))
        if self._vision is None or not tiles:
            return
        request.encode_task = EncodeTask(
            self._vision,
            tiles,
            report=partial(self._on_encode_update, request),
            ahead=self._encode_ahead,
            alone=lambda: len(self._steps.running) == 1 and not self._waiting,
        )
        if self._encode_ahead:
            self._worker.ask(request.encode_task)
        self._ask_for_tile(request)
        if request.cancelled:  # `cancel` may have looked before the task was there
            self._worker.drop(request.encode_task)

    def _on_encode_update(self, request: RequestState, update: EncodeUpdate) -> None:
        """Runs on the background worker's thread."""
        match update:
            case TileStarted(done, total):
                self._worker.count_progress()
                if not request.cancelled:
                    request.emit(EncodeProgress(done, total))
            case TileEncoded():
                self._post(AddTile(request, update))
            case ImagesReleased():
                request.close_images()

    def _add_tile(self, request: RequestState, encoded: TileEncoded) -> None:
        if request.finished:
            return
        if isinstance(encoded.result, BaseException):
            self._fail(request, encoded.result)
        else:
            request.add_tile(encoded.tile, encoded.result)
            self._ask_for_tile(request)  # its span may need another tile

    def _finish_chunk(self, request: RequestState, evaluated: ChunkEvaluated) -> None:
        assert self._prefill is not None
        position = request.next_unit
        logits = self._prefill.finish_chunk(evaluated)
        if request.next_unit != position:
            self._ask_for_tile(request)
        if logits is not None:
            self._steps.sample(request, logits)

    def _on_prompt_progress(self, request: RequestState) -> None:
        if request.next_unit in request.checkpoint_after:
            self._sequences.save_checkpoint(request.running_sequence)
        self._ask_for_tile(request)

    def _ask_for_tile(self, request: RequestState) -> None:
        """Ask for the next tile of a prompt, where tiles are not encoded ahead."""
        if self._encode_ahead or not request.in_prompt or self._vision is None:
            return
        if request.waits_for_tile:
            assert request.encode_task is not None
            if request.encode_task.tiles:
                self._worker.ask(request.encode_task)

    def _on_finished(self, request: RequestState, error: BaseException | None) -> None:
        if error is None:
            self._end(request)
        else:
            self._fail(request, error)

    def _fail(self, request: RequestState, error: BaseException) -> None:
        self._steps.deliver()
        if not request.cancelled and not request.finished:
            request.emit(error)
        self._end(request, failed=True)

    def _end(self, request: RequestState, *, failed: bool = False) -> None:
        """Free what a request holds. Its sequence keeps its cache for later prompts. Does nothing the second time."""
        if request.finished:
            return
        request.finished = True
        if request in self._waiting:
            self._waiting.remove(request)
        if request.sequence is not None:
            self._steps.running.remove(request)
            if request.next_row:
                self._sequences.trim(request.sequence)
            self._sequences.release(request.sequence)
        if request.sampler is not None:
            request.sampler.close()
        if self._prefill is not None:
            self._prefill.drop(request)
        request.embeddings.clear()
        request.tile_embeddings.clear()
        if request.encode_task is not None:
            self._worker.drop(request.encode_task)
            request.encode_task = None  # breaks a reference cycle that would keep the pictures for a while
        else:
            request.close_images()
        answered = request.first_token_at > 0
        with self._lock:
            self._open_requests -= 1
            totals = self._statistics
            self._statistics = replace(
                totals,
                finished=totals.finished + (not failed and not request.cancelled),
                cancelled=totals.cancelled + request.cancelled,
                failed=totals.failed + (failed and not request.cancelled),
                prompt_tokens=totals.prompt_tokens + (request.prompt_tokens if answered else 0),
                cached_tokens=totals.cached_tokens + (request.cached_tokens if answered else 0),
                generated_tokens=totals.generated_tokens + request.generated,
                drafted_tokens=totals.drafted_tokens + request.drafted,
                accepted_tokens=totals.accepted_tokens + request.accepted,
            )
