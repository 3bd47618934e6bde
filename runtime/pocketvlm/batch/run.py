"""Answer a job with one model, several requests at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Any

from pocketvlm.batch.requests import BatchInput
from pocketvlm.batch.results import Results, answered, refused
from pocketvlm.chat.completion import fold
from pocketvlm.chat.vlm import VLM
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import (
    EngineClosedError,
    EngineCrashedError,
    GenerationCancelledError,
    PocketVLMError,
    RequestError,
)
from pocketvlm.messages import ChatRequest


def run(vlm: VLM, job: BatchInput, results: Results, *, together: int, told: Callable[[], None] = lambda: None) -> None:
    """Answer what has no line yet, `together` requests at a time; `told` is called after each.

    A request that is wrong gets a line that says so. Ctrl-C and an engine that crashes again and again end it; what
    is done stays.
    """
    todo = iter([item for item in job.items if item.custom_id not in results.done])
    answerer = Answerer(vlm)
    running: set[Future[str | None]] = set()
    with ThreadPoolExecutor(together, "pocketvlm-batch") as pool:
        try:
            while True:
                while len(running) < together and (item := next(todo, None)) is not None:
                    running.add(pool.submit(answerer.line, item.custom_id, partial(job.body, item)))
                if not running:
                    break
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for line in _lines(ready):
                    results.add(line)
                    told()
        except BaseException:  # Ctrl-C too: what is done is kept
            answerer.stop()
            wait(running)
            for line in _lines(future for future in running if future.exception() is None):
                results.add(line)
            raise


def _lines(futures: Iterable[Future[str | None]]) -> list[str]:
    return [line for future in futures if (line := future.result()) is not None]


class Answerer:
    """Turns requests into lines; from several threads."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm
        self._stoppers: set[CancellationToken] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def line(self, custom_id: str, body: Callable[[], dict[str, Any]]) -> str | None:
        """None where it was stopped. Raises EngineError where there is no sense in going on."""
        try:
            request = ChatRequest.parse_object(body())
        except RequestError as error:
            return refused(custom_id, error)
        return self._attempt(custom_id, request, again=True)

    def _attempt(self, custom_id: str, request: ChatRequest, *, again: bool) -> str | None:
        try:
            return self._answer(custom_id, request)
        except GenerationCancelledError:
            return None
        except EngineCrashedError as error:
            if self._vlm.statistics().state == "failing":
                raise
            # It may have been another request's fault.
            return self._attempt(custom_id, request, again=False) if again else refused(custom_id, error)
        except EngineClosedError:
            raise
        except (PocketVLMError, OSError) as error:
            return refused(custom_id, error)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for cancellation in self._stoppers:
                cancellation.stop()

    def _answer(self, custom_id: str, request: ChatRequest) -> str:
        cancellation = CancellationToken()
        with self._lock:
            if self._stopped:
                raise GenerationCancelledError("the batch was stopped")
            self._stoppers.add(cancellation)
        try:
            with closing(self._vlm.run(request, cancellation=cancellation, buffered=True)) as chunks:
                return answered(custom_id, fold(chunks, request))
        finally:
            with self._lock:
                self._stoppers.discard(cancellation)
