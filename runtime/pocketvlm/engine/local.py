"""The engine in this process: a model, its vision, one context, and the scheduler that shares them out."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from pocketvlm.devices import physical_cores
from pocketvlm.engine.cache import length_of
from pocketvlm.engine.engine import (
    EngineInfo,
    EngineOptions,
    Event,
    Finished,
    Generation,
    Image,
    Snapshot,
    Statistics,
    Stopper,
)
from pocketvlm.engine.job import Job, Sink
from pocketvlm.engine.load import load
from pocketvlm.engine.sampling import check_sampling
from pocketvlm.engine.scheduler import Scheduler
from pocketvlm.engine.step import UNREAD, Threads
from pocketvlm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    GenerationCancelledError,
    RequestError,
)
from pocketvlm.native.grammar import Matcher, Vocabulary
from pocketvlm.native.llama import Model
from pocketvlm.templates.prompt import TextSpan
from pocketvlm.vision.encoder import Seen, Vision
from pocketvlm.vision.files import EmbeddingFiles
from pocketvlm.vision.pair import check_files
from pocketvlm.vision.units import Unit, units_of


class LocalEngine:
    """Loads the files; raises ModelError leaves, each naming the file.

    Alone (`parallel` 1), decoder and encoder take turns, with all threads each. With several requests they work at
    the same time: encoder and prompts on the side have half of the threads, and the decoder the rest of them while
    those work. Twice as many threads as cores would stall all of them.
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
        files = None
        if options.picture_cache is not None:
            files = EmbeddingFiles(options.picture_cache, options.picture_files_size)
        count = options.threads or physical_cores()
        encoding = options.threads
        if options.parallel > 1:
            encoding = max(1, count // 2)
        threads = Threads(count, max(1, count - encoding) if options.parallel > 1 and encoding else count)
        loaded = load(checked, options, threads=threads, encoding=encoding, files=files)
        self._model, self._vision, self._context = loaded.model, loaded.vision, loaded.context
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
            context_size=self._context.n_ctx,
            fingerprint=fingerprint,
            exact=options.exact,
            placement=loaded.placement.told,
        )
        self._scheduler = Scheduler(
            self._model,
            self._vision,
            self._context,
            lanes=options.parallel,
            queue_size=options.queue_size,
            threads=threads,
            table=loaded.table,
            speculation=loaded.speculation,
            aside=loaded.aside,
        )
        self._parallel = options.parallel
        self._words: Vocabulary | None = None
        self._making = threading.Lock()
        self._open: dict[Job, SimpleQueue[Event | BaseException]] = {}
        self._owners: Counter[int] = Counter()
        self._lock = threading.RLock()  # the garbage collector ends streams, on any thread, in any line
        self._calls = _Calls()
        # Its thread would keep the scheduler, and so the model, alive for ever.
        self._process = os.getpid()
        self._finalizer = weakref.finalize(
            self, _free, self._process, self._scheduler, self._calls, self._vision, self._model
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def statistics(self) -> Statistics:
        found = self._scheduler.statistics()
        if self._vision is None:
            return found
        cache = self._vision.cache.statistics()
        return replace(
            found,
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
    def doing(self) -> tuple[int | None, int | None]:
        """Which step and which tile are under way, in order of time: for who wants to see that they change."""
        return self._scheduler.doing

    def cancel(self) -> None:
        with self._lock:
            running = [(job, channel) for job, channel in list(self._open.items()) if job.lane is not None]
        for job, channel in running:
            self._scheduler.cancel(job)
            channel.put(GenerationCancelledError(_CANCELLED))

    def close(self) -> None:
        self._finalizer()

    def generate(self, request: Generation, stopper: Stopper | None = None) -> Generator[Event, None, None]:
        self._check_open()
        thread = threading.get_ident()
        if self._owners[thread] >= self._parallel:
            raise EngineBusyError("this thread has unfinished streams on this model: read one to its end or close it")
        channel: SimpleQueue[Event | BaseException] = SimpleQueue()
        job = self.submit(request, channel.put, channel.qsize)
        with self._lock:
            self._open[job] = channel
            self._owners[thread] += 1
        event: Event | BaseException | None = None
        stopper = stopper or Stopper()
        stopper.attach(lambda: channel.put(GenerationCancelledError(_CANCELLED)))
        try:
            while not isinstance(event, Finished):
                event = channel.get()
                if job.cancelled:
                    raise GenerationCancelledError(_CANCELLED)
                self._check_open()
                if isinstance(event, BaseException):
                    raise event
                if channel.qsize() == UNREAD - 1:
                    self._scheduler.wake()
                yield event
        finally:
            stopper.attach(None)
            with self._lock:
                del self._open[job]
                self._owners[thread] -= 1
                if not self._owners[thread]:
                    del self._owners[thread]
            if not isinstance(event, Finished):
                self._scheduler.cancel(job)

    def submit(self, request: Generation, sink: Sink, unread: Callable[[], int] = lambda: 0) -> Job:
        """The same without an iterator: events go to `sink` from other threads; an error, then, is the last.

        What is wrong with the request is raised here.
        """
        with self._calls:
            return self._submit(request, sink, unread)

    def _submit(self, request: Generation, sink: Sink, unread: Callable[[], int]) -> Job:
        check_sampling(self._model, request)
        wanted = request.constraint
        matcher = None if wanted is None else Matcher(self._vocabulary(), wanted)
        seen: list[tuple[Image, Seen]] = []
        try:
            units = self._units(request.prompt, seen)
            if not units:
                raise RequestError("the prompt is empty", "messages")
            total = sum(map(length_of, units))
            room = self._context.n_ctx - total
            if room < 1:
                raise ContextLengthError(
                    f"the prompt has {total:,} tokens ({sum(s.tokens for _, s in seen):,} of them pictures), "
                    f"the context holds {self._context.n_ctx:,}",
                    "messages",
                )
            limit = min(request.max_tokens or room, room)
            job = Job(request, units, seen, limit, sink, unread, matcher)
            self._scheduler.submit(job)
        except BaseException:  # Ctrl-C too: nobody else can close them
            for _, picture in seen:
                picture.close()
            raise
        return job

    def snapshot(self, prompt: Sequence[TextSpan | Image]) -> Snapshot:
        self._check_open()
        seen: list[tuple[Image, Seen]] = []
        with self._calls:
            try:
                units = self._units(prompt, seen)
            finally:
                for _, picture in seen:
                    picture.close()
        return self._scheduler.between_steps(lambda lanes: lanes.snapshot(units))

    def adopt(self, snapshot: Snapshot) -> None:
        self._check_open()
        self._scheduler.between_steps(lambda lanes: lanes.adopt(snapshot))

    def withdraw(self, job: Job) -> None:
        """Forget what was submitted."""
        self._scheduler.cancel(job)

    def _vocabulary(self) -> Vocabulary:
        """Made when it is first needed."""
        with self._making:
            if self._words is None:
                self._words = Vocabulary(self._model)
            return self._words

    def _check_open(self) -> None:
        if os.getpid() != self._process:  # its threads are not here, and nobody would ever answer
            raise EngineError("the model was loaded before this process was forked: load it where it is used")
        if not self._finalizer.alive:
            raise EngineClosedError(_CLOSED)

    def _units(self, prompt: Sequence[TextSpan | Image], seen: list[tuple[Image, Seen]]) -> list[Unit]:
        pieces: list[TextSpan | Seen] = []
        for piece in prompt:
            if isinstance(piece, TextSpan):
                pieces.append(piece)
                continue
            if self._vision is None:
                raise RequestError(
                    f"{self._info.name} is a text-only model: it was loaded without a projector", piece.param
                )
            picture = self._vision.prepare(piece.picture, piece.detail, piece.max_tokens, piece.param)
            seen.append((piece, picture))
            pieces.append(picture)
        return units_of(self._model, pieces)


_CANCELLED, _CLOSED = "the generation was cancelled", "the model is closed"


class _Calls:
    """Those that use native objects on threads of their own, as tokenizing does: who frees them waits for the end."""

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
        """No more from now on; returns when none runs, but for one that a signal interrupts on this very thread."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not {*self._threads} - {threading.get_ident()})


def _free(process: int, scheduler: Scheduler, calls: _Calls, vision: Vision | None, model: Model) -> None:
    if os.getpid() != process:  # forked: the threads to wait for are not here
        return
    scheduler.close()
    calls.end()
    if vision is not None:
        vision.close()
    model.close()  # closes context and vision before itself
