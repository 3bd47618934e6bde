"""Answer a batch with one model, several requests at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Any, Protocol

from pocketvlm.batch.file_state import FileState
from pocketvlm.batch.lines import answer_line, error_line
from pocketvlm.batch.requests import AskedItem, BatchInput, local_files
from pocketvlm.chat.completion import fold
from pocketvlm.chat.vlm import VLM
from pocketvlm.decisions.decision import Decision
from pocketvlm.decisions.response import DecisionResponse, response_of
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import (
    EngineClosedError,
    EngineCrashedError,
    GenerationCancelledError,
    PocketVLMError,
    RequestError,
)
from pocketvlm.messages import ChatCompletion


class Answers(Protocol):
    """Where lines go: the record, or standard output. `done` has the custom_ids that need not be asked."""

    @property
    def done(self) -> set[str]: ...

    def add(self, line: str) -> None: ...


def run(
    vlm: VLM, batch: BatchInput, results: Answers, *, parallel: int, progress: Callable[[], None] = lambda: None
) -> None:
    """Answer the requests that are not done, `parallel` at a time, and call `progress` after each.

    An invalid request gets a line with its error. Ctrl-C and an engine that keeps crashing end the run; finished lines
    stay.
    """
    todo = iter([item for item in batch.items if item.custom_id not in results.done])
    answerer = Answerer(vlm)
    running: set[Future[str | None]] = set()
    with ThreadPoolExecutor(parallel, "pocketvlm-batch") as pool:
        try:
            while True:
                while len(running) < parallel and (item := next(todo, None)) is not None:
                    running.add(pool.submit(answerer.line, item.custom_id, partial(batch.body, item)))
                if not running:
                    break
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for line in _lines(ready):
                    results.add(line)
                    progress()
        except BaseException:  # Ctrl-C too: keep the finished answers
            answerer.stop()
            wait(running)
            for line in _lines(future for future in running if future.exception() is None):
                results.add(line)
            raise


def _lines(futures: Iterable[Future[str | None]]) -> list[str]:
    return [line for future in futures if (line := future.result()) is not None]


class Answerer:
    """Turns requests into lines, from several threads."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm
        self._stoppers: set[CancellationToken] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def line(self, custom_id: str, body: Callable[[], dict[str, Any]]) -> str | None:
        """Return the line of a request; None where it was stopped. Raises EngineError where the engine is gone."""
        try:
            asked = AskedItem.parse(body())
        except (RequestError, OSError) as error:
            return error_line(custom_id, error)
        return self._attempt(custom_id, asked, retry=True)

    def _attempt(self, custom_id: str, asked: AskedItem, *, retry: bool) -> str | None:
        try:
            files = [FileState.of(path) for path in local_files(asked.requests[0])]  # before they are read
            return answer_line(custom_id, self._answer(asked), files)
        except GenerationCancelledError:
            return None
        except EngineCrashedError as error:
            if self._vlm.statistics().state == "failing":
                raise
            # Another request may have caused the crash.
            return self._attempt(custom_id, asked, retry=False) if retry else error_line(custom_id, error)
        except EngineClosedError:
            raise
        except (PocketVLMError, OSError) as error:
            return error_line(custom_id, error)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for cancellation in self._stoppers:
                cancellation.stop()

    def _answer(self, asked: AskedItem) -> ChatCompletion | Decision | DecisionResponse:
        cancellation = CancellationToken()
        with self._lock:
            if self._stopped:
                raise GenerationCancelledError("the batch was stopped")
            self._stoppers.add(cancellation)
        try:
            if asked.choices:
                decisions = [
                    self._vlm.run_decision(request, choices, cancellation=cancellation)
                    for request, choices in zip(asked.requests, asked.choices, strict=True)
                ]
                if not asked.decisions:
                    return decisions[0]
                return response_of([one.question for one in asked.decisions], decisions, self._vlm.info.name)[0]
            with closing(self._vlm.run(asked.requests[0], cancellation=cancellation, buffered=True)) as chunks:
                return fold(chunks)
        finally:
            with self._lock:
                self._stoppers.discard(cancellation)
