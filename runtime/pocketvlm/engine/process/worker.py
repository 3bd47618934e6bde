"""The process of a `SupervisedEngine`: it reads requests from standard input and writes replies to standard output.

It ends with its parent, however that ends: then the pipe closes, and the process also checks the id of its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO

from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import CancellationToken, Event, Finished, Generation
from pocketvlm.engine.process import protocol
from pocketvlm.engine.scheduling.request_state import RequestState
from pocketvlm.errors import PocketVLMError
from pocketvlm.system import offline
from pocketvlm.system.allocator import freeze_garbage_collector, return_large_blocks
from pocketvlm.system.limits import offer_to_oom_killer, shortage
from pocketvlm.templates.prompt import TextSpan

_PARENT_CHECK_INTERVAL = 1.0  # seconds
_MAX_FRAMES_PER_WRITE = 64
_LONG_PROMPT = 100_000  # characters of text, whose tokenizing would hold up other requests


def main() -> None:
    parent = os.getppid()
    offer_to_oom_killer()
    offline.enforce_if_requested()
    return_large_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    if sys.platform != "win32":
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or `stty tostop` would stop a process that logs to the terminal
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # native code that prints must not print into the replies
    outbox: SimpleQueue[protocol.Reply] = SimpleQueue()
    try:
        threading.Thread(target=_write, args=(replies, outbox, parent), daemon=True).start()
    except RuntimeError as error:  # the system gives no thread
        replies.write(b"".join(protocol.REPLIES.pack(_refused(error))))
    else:
        serve(requests, outbox)
    os._exit(0)  # without waiting for anything: the parent has gone, or wants that


def serve(requests: IO[bytes], outbox: SimpleQueue[protocol.Reply]) -> None:
    """Load the engine and handle requests until the parent has gone or sends `Close`."""
    start = protocol.REQUESTS.read(requests)
    if start is None:
        return
    assert isinstance(start, protocol.Start)
    try:
        engine = InProcessEngine(
            start.model,
            start.mmproj,
            start.onnx,
            name=start.name,
            fingerprint=start.fingerprint,
            options=start.options,
        )
    except Exception as error:
        if not (isinstance(error, PocketVLMError) or shortage(error)):
            raise
        outbox.put(_refused(error))
        protocol.REQUESTS.read(requests)  # returns when the parent has read the reply and closes the pipe
        return
    freeze_garbage_collector()
    outbox.put(protocol.Ready(engine.info))
    handler = _Handler(engine, outbox)
    while (request := _next_request(requests)) is not None:
        handler.handle(request)
        del request  # it may hold pictures, and the next one may be long in coming


def _refused(error: Exception) -> protocol.Refused:
    return protocol.Refused(protocol.ErrorMessage.of(error))


def _next_request(stream: IO[bytes]) -> protocol.EngineRequest | None:
    """Wait for a request; None where the parent has gone, or wants the process to end."""
    request = protocol.REQUESTS.read(stream)
    return None if isinstance(request, protocol.Start | protocol.Close) else request


@dataclass
class _Submission:
    """A generation; `state` is None before it is submitted to the engine."""

    cancellation: CancellationToken = field(default_factory=CancellationToken)
    state: RequestState | None = None


class _Handler:
    """Handles requests to a loaded engine, and puts the replies into the outbox."""

    def __init__(self, engine: InProcessEngine, outbox: SimpleQueue[protocol.Reply]) -> None:
        self._engine, self._outbox = engine, outbox
        self._generations: dict[int, _Submission] = {}  # that are not over
        self._lock = threading.Lock()
        # What takes time runs apart from other requests, and what may take seconds apart from what takes less.
        self._short = ThreadPoolExecutor(2, "pocketvlm-short-request")  # a grammar that is known to be quick
        self._long = ThreadPoolExecutor(2, "pocketvlm-long-request")  # a whole book, a snapshot
        self._trials = ThreadPoolExecutor(2, "pocketvlm-trial")  # any other grammar

    def handle(self, request: protocol.EngineRequest) -> None:
        try:
            self._handle(request)
        except Exception as error:  # such as no thread for an executor; it concerns this request alone
            if not isinstance(request, protocol.Question):
                raise
            self._emit(request.id, error)

    def _handle(self, request: protocol.EngineRequest) -> None:
        match request:
            case protocol.Generate(number, generation):
                submission = self._generations[number] = _Submission()
                characters = sum(len(piece.text) for piece in generation.prompt if isinstance(piece, TextSpan))
                submit = partial(self._submit, number, generation, submission)
                if not self._engine.begins_quickly(generation):
                    _run_in(self._trials, submit)
                elif characters >= _LONG_PROMPT:
                    _run_in(self._long, submit)
                elif generation.constraint is not None:
                    _run_in(self._short, submit)
                else:
                    submit()
            case protocol.Cancel(number):
                with self._lock:
                    cancelled = self._generations.pop(number, None)
                if cancelled is not None:
                    cancelled.cancellation.stop()
                    if cancelled.state is not None:
                        self._engine.withdraw(cancelled.state)
            case protocol.CountTokens(number, prompt):
                self._answer_slowly(number, lambda: protocol.TokenCountReply(number, self._engine.count_tokens(prompt)))
            case protocol.TakeSnapshot(number, prompt):
                self._answer_slowly(number, lambda: protocol.SnapshotReply(number, self._engine.snapshot(prompt)))
            case protocol.AdoptSnapshot(number, snapshot):
                self._do_slowly(number, partial(self._engine.adopt, snapshot))
            case protocol.ClearPictureCache(number):
                self._do_slowly(number, self._engine.clear_picture_cache)
            case protocol.GetStatistics(number):
                self._outbox.put(protocol.StatisticsReply(number, self._engine.statistics()))
            case protocol.GetProgress():
                self._outbox.put(protocol.ProgressReply(self._engine.progress))

    def _submit(self, number: int, generation: Generation, submission: _Submission) -> None:
        try:
            submission.cancellation.check()  # it may have waited for long
            emit = partial(self._emit, number)
            state = self._engine.submit(generation, emit, cancellation=submission.cancellation)
        except Exception as error:  # the parent raises it
            self._emit(number, error)
            return
        with self._lock:
            wanted = number in self._generations
            submission.state = state
        if not wanted:  # it has finished already, or was cancelled before it was submitted
            self._engine.withdraw(state)

    def _emit(self, number: int, event: Event | BaseException) -> None:
        if isinstance(event, BaseException):
            self._outbox.put(protocol.Failed(number, protocol.ErrorMessage.of(event)))
        else:
            self._outbox.put(protocol.EventReply(number, event))
        if isinstance(event, Finished | BaseException):
            with self._lock:
                self._generations.pop(number, None)

    def _do_slowly(self, number: int, work: Callable[[], None]) -> None:
        def answer() -> protocol.Reply:
            work()
            return protocol.Done(number)

        self._answer_slowly(number, answer)

    def _answer_slowly(self, number: int, answer: Callable[[], protocol.Reply]) -> None:
        def run() -> None:
            try:
                self._outbox.put(answer())
            except Exception as error:  # the parent raises it
                self._outbox.put(protocol.Failed(number, protocol.ErrorMessage.of(error)))

        _run_in(self._long, run)


def _run_in(executor: ThreadPoolExecutor, work: Callable[[], None]) -> None:
    """Run `work` in a thread of the executor. Raises RuntimeError where there is none, and drops the work.

    The executor queues it before it starts a thread, so another thread may yet come to it, now or later.
    """
    once = threading.Lock()

    def run() -> None:
        if once.acquire(blocking=False):
            work()

    try:
        executor.submit(run)
    except RuntimeError:
        if once.acquire(blocking=False):
            raise


def _write(stream: IO[bytes], outbox: SimpleQueue[protocol.Reply], parent: int) -> None:
    """Write replies until the parent has gone or the stream is closed; then end the process."""
    try:
        _write_all(stream, outbox, parent)
    except OSError:
        pass
    except BaseException:  # whatever it is, the process is of no use without this thread
        traceback.print_exc()
    os._exit(1)


def _write_all(stream: IO[bytes], outbox: SimpleQueue[protocol.Reply], parent: int) -> None:
    while True:
        try:
            replies = [outbox.get(timeout=_PARENT_CHECK_INTERVAL)]
        except Empty:
            if os.getppid() != parent:
                return
            continue
        while not outbox.empty() and len(replies) < _MAX_FRAMES_PER_WRITE:
            replies.append(outbox.get())
        data = memoryview(b"".join(part for reply in replies for part in protocol.REPLIES.pack(reply)))
        while data:
            data = data[stream.write(data) :]
