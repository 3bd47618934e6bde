"""The engine in this process: a model, its vision, one context, and the scheduler that shares them out."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from pocketvlm.engine.interface import (
    CancellationToken,
    EngineInfo,
    EngineOptions,
    Event,
    Finished,
    Generation,
    PromptImage,
    Snapshot,
    Statistics,
    TokenCount,
)
from pocketvlm.engine.kv_cache.prefix_cache import length_of
from pocketvlm.engine.loading.device_placement import DevicePlacement
from pocketvlm.engine.loading.loader import device_memory, load
from pocketvlm.engine.loading.room import check_spare_addresses, within_limits
from pocketvlm.engine.loading.trial import try_files
from pocketvlm.engine.scheduling.request_state import Emit, RequestState
from pocketvlm.engine.scheduling.scheduler import Scheduler
from pocketvlm.engine.scheduling.step import MAX_UNREAD_EVENTS
from pocketvlm.engine.scheduling.token_sampler import check_sampling
from pocketvlm.engine.scheduling.token_tree import TokenTree
from pocketvlm.engine.speculative.draft_length import DraftLengthPolicy
from pocketvlm.engine.threads import ThreadBudget
from pocketvlm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    GenerationCancelledError,
    RequestError,
    SystemLimitError,
    UnsupportedError,
    quoted,
)
from pocketvlm.native.grammar import Matcher, Vocabulary
from pocketvlm.native.grammar_trial import GrammarTrials
from pocketvlm.native.llama import Model
from pocketvlm.system.allocator import share_one_heap
from pocketvlm.system.machine import physical_cores
from pocketvlm.templates.prompt import TextSpan
from pocketvlm.vision.compatibility import check_files
from pocketvlm.vision.embedding_disk_cache import DiskCache
from pocketvlm.vision.encoder import PreparedImage, Vision
from pocketvlm.vision.prompt_units import PromptUnit, PromptUnits, following_tokens, prompt_units


class InProcessEngine:
    """Loads the files. Raises ModelError leaves, each naming the file.

    With `parallel` 1, decoder and encoder take turns and use all threads. With several requests they work at the same
    time: the background worker (encoder, background prefill) has half of the threads, the decoder the other half while
    it works.
    """

    def __init__(
        self,
        model: Path,
        mmproj: Path | None,
        onnx: Path | None,
        *,
        name: str,
        fingerprint: str,
        options: EngineOptions,
    ) -> None:
        checked = check_files(model, mmproj, onnx, options.vision)
        share_one_heap()
        checked, options = within_limits(checked, options)
        try_files(checked)
        disk_cache = None
        if options.picture_cache is not None:
            disk_cache = DiskCache(options.picture_cache, options.picture_files_size)
        count = options.threads or physical_cores()
        threads = ThreadBudget.split(count, parallel=options.parallel)
        encoder_threads = max(1, count // 2) if options.parallel > 1 else options.threads
        loaded = load(checked, options, threads=threads, encoder_threads=encoder_threads, disk_cache=disk_cache)
        self._model, self._vision, self._context = loaded.model, loaded.vision, loaded.context
        try:
            check_spare_addresses(name)
        except SystemLimitError:
            self._model.close()
            raise
        control = self._model.control_tokens(checked.model.array("tokenizer.ggml.token_type"))
        self._info = EngineInfo(
            name=name,
            chat_template=self._model.chat_template,
            bos=self._model.token_text(self._model.bos),
            eos=self._model.token_text(self._model.eos),
            control_tokens=control,
            end_tokens=frozenset(text for text, token in control.items() if self._model.is_end(token)),
            image_token=self._vision.image_token if self._vision else None,
            has_vision=self._vision is not None,
            vision=self._vision.name if self._vision else None,
            shows_videos=self._vision is not None and self._vision.shows_videos,
            context_size=self._context.n_ctx,
            fingerprint=fingerprint,
            exact=options.exact,
            cache_type=options.kv_type,
            threads=count,
            placement=loaded.placement.summary,
            layout=loaded.layout.value,
            picture_metadata=checked.picture_metadata,
            device_bytes=device_memory(checked, options, loaded.placement),
        )
        self._scheduler = Scheduler(
            self._model,
            self._vision,
            self._context,
            parallel=options.parallel,
            threads=threads,
            load_token_embeddings=loaded.load_token_embeddings,
            draft_policy=loaded.draft_policy,
            prefill_context=loaded.prefill_context,
            adapts=adapts_threads(options, loaded.placement, loaded.draft_policy),
        )
        self._parallel = options.parallel
        self._vocabulary: Vocabulary | None = None
        self._making_vocabulary = threading.Lock()
        self._trials = GrammarTrials()
        self._open: dict[RequestState, SimpleQueue[Event | BaseException]] = {}
        self._streams_of_thread: Counter[int] = Counter()
        self._lock = threading.RLock()  # the garbage collector ends streams, on any thread, in any line
        self._calls = _Calls()
        # Not a __del__: the scheduler's thread keeps the scheduler, and so the model, alive.
        self._process = os.getpid()
        self._finalizer = weakref.finalize(
            self, _free, self._process, self._scheduler, self._trials, self._calls, self._vision, self._model
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def state(self) -> Literal["ready", "closed"]:
        return "ready" if self._finalizer.alive else "closed"

    def statistics(self) -> Statistics:
        statistics = self._scheduler.statistics()
        if self._vision is None:
            return statistics
        cache = self._vision.cache.statistics()
        return replace(
            statistics,
            tiles_encoded=cache.encoded,
            tiles_from_memory=cache.from_memory,
            tiles_from_disk=cache.from_disk,
            picture_evictions=cache.evictions,
            picture_bytes=cache.bytes,
        )

    def clear_picture_cache(self) -> None:
        if self._vision is not None:
            self._vision.cache.clear()

    @property
    def progress(self) -> tuple[int | None, int | None]:
        """The numbers of the running step and of the running background work, rising with time; None while idle."""
        return self._scheduler.progress

    def cancel(self) -> None:
        with self._lock:
            running = [(request, channel) for request, channel in list(self._open.items()) if request.sequence]
        for request, channel in running:
            self._scheduler.cancel(request)
            channel.put(GenerationCancelledError(_CANCELLED))

    def close(self) -> None:
        self._finalizer()

    def generate(
        self, generation: Generation, cancellation: CancellationToken | None = None
    ) -> Generator[Event, None, None]:
        self._check_open()
        thread = threading.get_ident()
        if self._streams_of_thread[thread] >= self._parallel:
            raise EngineBusyError("this thread has unfinished streams on this model: read one to its end or close it")
        channel: SimpleQueue[Event | BaseException] = SimpleQueue()
        cancellation = cancellation or CancellationToken()
        request = self.submit(generation, channel.put, channel.qsize, cancellation)
        with self._lock:
            self._open[request] = channel
            self._streams_of_thread[thread] += 1
        event: Event | BaseException | None = None
        cancellation.attach(lambda: channel.put(GenerationCancelledError(_CANCELLED)))
        try:
            while not isinstance(event, Finished):
                event = channel.get()
                if request.cancelled:
                    raise GenerationCancelledError(_CANCELLED)
                self._check_open()
                if isinstance(event, BaseException):
                    raise event
                if channel.qsize() == MAX_UNREAD_EVENTS - 1:
                    self._scheduler.wake()
                yield event
        finally:
            cancellation.attach(None)
            with self._lock:
                del self._open[request]
                self._streams_of_thread[thread] -= 1
                if not self._streams_of_thread[thread]:
                    del self._streams_of_thread[thread]
            if not isinstance(event, Finished):
                self._scheduler.cancel(request)

    def submit(
        self,
        generation: Generation,
        emit: Emit,
        unread_events: Callable[[], int] = lambda: 0,
        cancellation: CancellationToken | None = None,
    ) -> RequestState:
        """Like `generate`, without an iterator: `emit` gets the events on other threads; an error is the last one.

        Raises what is wrong with the request, and GenerationCancelledError where `cancellation` ends it before it is
        submitted; later, `withdraw` does.
        """
        with self._calls:
            return self._submit(generation, emit, unread_events, cancellation or CancellationToken())

    def _submit(
        self, generation: Generation, emit: Emit, unread_events: Callable[[], int], cancellation: CancellationToken
    ) -> RequestState:
        check_sampling(self._model, generation)
        matcher = None
        if generation.constraint is not None:
            constraint = self._trials.affordable(generation.constraint, cancellation.check)
            matcher = Matcher(self._grammar_vocabulary(), constraint)
        images: list[tuple[PromptImage, PreparedImage]] = []
        try:
            prompt = self._prompt_units(generation.prompt, images)
            if not prompt.units:
                raise RequestError("the prompt is empty", "messages")
            prompt_tokens = sum(map(length_of, prompt.units))
            room = self._context.n_ctx - prompt_tokens
            if room < 1:
                image_tokens = sum(prepared.tokens for _, prepared in images)
                raise ContextLengthError(
                    f"the prompt has {prompt_tokens:,} tokens ({image_tokens:,} of them pictures), "
                    f"the context holds {self._context.n_ctx:,}",
                    "messages",
                )
            limit = min(generation.max_tokens or room, room)
            tree = self._token_tree(generation, room) if generation.choices else None
            request = RequestState(generation, prompt, images, limit, emit, unread_events, matcher, tree=tree)
            self._scheduler.submit(request)
        except BaseException:  # Ctrl-C too: no caller has the images yet
            for _, prepared in images:
                prepared.close()
            raise
        return request

    def _token_tree(self, generation: Generation, room: int) -> TokenTree:
        """Return the tree of the choices of a generation. `room` is how many tokens fit behind the prompt."""
        if not self._model.ends:
            raise UnsupportedError("the model has no token that ends an answer, so answers cannot be compared")
        last = generation.prompt[-1]
        before = last if isinstance(last, TextSpan) and not last.special else None
        # What is not in the vocabulary becomes another text, which says nothing about this one.
        tokens = [following_tokens(self._model, before, choice) for choice in generation.choices]
        if not any(tokens):
            text = quoted(generation.choices[0].strip())
            raise RequestError(f"the model cannot answer {text}: its vocabulary lacks it", "choices.0")
        tree = TokenTree(tokens, self._model.ends, max_branches=self._scheduler.max_branches)
        if tree.rows > room:
            raise ContextLengthError(
                f"the choices take {tree.rows:,} tokens at once, and the prompt leaves {max(0, room):,} of the context",
                "choices",
            )
        return tree

    def begins_quickly(self, generation: Generation) -> bool:
        """Whether `submit` is known to return soon as far as the generation's grammar goes."""
        return generation.constraint is None or self._trials.is_quick(generation.constraint)

    def count_tokens(self, prompt: Sequence[TextSpan | PromptImage]) -> TokenCount:
        units, images = self._planned(prompt)
        return TokenCount(sum(map(length_of, units)), images)

    def snapshot(self, prompt: Sequence[TextSpan | PromptImage]) -> Snapshot:
        units, _ = self._planned(prompt)
        return self._scheduler.run_between_steps(lambda sequences: sequences.snapshot(units))

    def adopt(self, snapshot: Snapshot) -> None:
        self._check_open()
        self._scheduler.run_between_steps(lambda sequences: sequences.adopt(snapshot))

    def withdraw(self, request: RequestState) -> None:
        """Cancel what `submit` returned."""
        self._scheduler.cancel(request)

    def _grammar_vocabulary(self) -> Vocabulary:
        """The vocabulary in llguidance's form, made when it is first needed."""
        with self._making_vocabulary:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._model)
            return self._vocabulary

    def _check_open(self) -> None:
        if os.getpid() != self._process:  # the engine's threads are not in this process: no request would end
            raise EngineError("the model was loaded before this process was forked: load it where it is used")
        if not self._finalizer.alive:
            raise EngineClosedError(_CLOSED)

    def _planned(self, prompt: Sequence[TextSpan | PromptImage]) -> tuple[list[PromptUnit], tuple[int, ...]]:
        """Return the units of a prompt that is not evaluated, and the tokens of each of its pictures."""
        self._check_open()
        images: list[tuple[PromptImage, PreparedImage]] = []
        with self._calls:
            try:
                units = self._prompt_units(prompt, images).units
                return units, tuple(prepared.tokens for _, prepared in images)
            finally:
                for _, prepared in images:
                    prepared.close()

    def _prompt_units(
        self, prompt: Sequence[TextSpan | PromptImage], images: list[tuple[PromptImage, PreparedImage]]
    ) -> PromptUnits:
        """Tokenize a prompt and prepare its images, which are added to `images`, to be closed."""
        pieces: list[TextSpan | PreparedImage] = []
        alone = sum(not isinstance(piece, TextSpan) for piece in prompt) == 1
        for piece in prompt:
            if isinstance(piece, TextSpan):
                pieces.append(piece)
                continue
            if self._vision is None:
                raise RequestError(
                    f"{self._info.name} is a text-only model: it was loaded without a projector", piece.param
                )
            options = (piece.detail, piece.max_tokens, piece.param)
            if piece.clip is not None:
                prepared = self._vision.prepare_clip(piece.clip, *options)
            else:
                prepared = self._vision.prepare(piece.picture, *options, alone=alone)
            images.append((piece, prepared))
            pieces.append(prepared)
        return prompt_units(self._model, pieces)


def adapts_threads(options: EngineOptions, placement: DevicePlacement, draft_policy: DraftLengthPolicy | None) -> bool:
    """Return whether answers have fewer threads while other programs compute.

    Trials have no drafts, so with `exact`, where rows must not depend on measured times, there must be none anyway. On
    Windows a thread's processor time is counted in ticks of 15.6 ms, longer than many steps.
    """
    return not placement.layers and not (options.exact and draft_policy is not None) and sys.platform != "win32"


_CANCELLED, _CLOSED = "the generation was cancelled", "the model is closed"


class _Calls:
    """Counts threads that use native objects, as tokenizing does. Freeing these objects waits for their end."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads: list[int] = []
        self._closed = False

    def __enter__(self) -> None:
        with self._changed:
            if self._closed:
                raise EngineClosedError(_CLOSED)
            self._threads.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._threads.remove(threading.get_ident())
            self._changed.notify_all()

    def end(self) -> None:
        """Refuse new calls and wait for running ones, except for one that a signal interrupted on this thread."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not {*self._threads} - {threading.get_ident()})


def _free(
    process: int, scheduler: Scheduler, trials: GrammarTrials, calls: _Calls, vision: Vision | None, model: Model
) -> None:
    if os.getpid() != process:  # after a fork the threads to wait for are not here
        return
    scheduler.close()
    trials.close()
    calls.end()
    if vision is not None:
        vision.close()
    model.close()  # closes context and vision before itself
