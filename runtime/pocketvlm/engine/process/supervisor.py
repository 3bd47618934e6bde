"""The engine in a process of its own, which is started again when native code ends it."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any, Literal

from pocketvlm.engine.interface import (
    GAUGES,
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
from pocketvlm.engine.process import protocol
from pocketvlm.engine.process.engine_process import Channel, EngineProcess
from pocketvlm.engine.process.watchdog import Watchdog
from pocketvlm.errors import EngineClosedError, EngineCrashedError, EngineError, GenerationCancelledError, quoted
from pocketvlm.system.allocator import share_one_heap
from pocketvlm.templates.prompt import TextSpan

_log = logging.getLogger(__name__)
_CRASH_LOOP = 3  # crashes in a row, without an answer between them, after which requests are refused
_PAUSES = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before the next start, by crashes in a row
_HEALTHY_AFTER = 60.0  # seconds: the crash of a process that ran longer counts as the first in a row
_STATISTICS_TIMEOUT = 1.0  # seconds
_CLOSED = "the model is closed"


class SupervisedEngine:
    """An engine like `InProcessEngine`, with the same arguments and errors.

    Raises EngineCrashedError where native code ends the process while it loads. When the process dies later, or is
    killed because it is stuck, its requests raise EngineCrashedError at once and it is started again; requests that
    come meanwhile wait. After several crashes in a row the pauses between starts grow, and requests that come in such
    a pause are refused with EngineCrashedError.
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
        start = protocol.Start(
            model.absolute(),
            mmproj and mmproj.absolute(),
            onnx and onnx.absolute(),
            name=name,
            fingerprint=fingerprint,
            options=options,
        )
        share_one_heap()
        self._supervisor = _Supervisor(start)
        # Not a __del__: the supervisor's threads keep the supervisor alive. This also ends the process at exit.
        self._finalizer = weakref.finalize(self, self._supervisor.close)

    @property
    def info(self) -> EngineInfo:
        return self._supervisor.info

    @property
    def state(self) -> Literal["ready", "restarting", "failing", "closed"]:
        if not self._finalizer.alive:
            return "closed"
        state = self._supervisor.state
        return "ready" if state == "ok" else state

    def generate(
        self, generation: Generation, cancellation: CancellationToken | None = None
    ) -> Generator[Event, None, None]:
        number = next(self._supervisor.ids)
        channel = Channel()
        process = self._supervisor.wait_for_process()
        process.ask(protocol.Generate(number, generation), channel)
        cancellation = cancellation or CancellationToken()
        cancellation.attach(lambda: channel.put(GenerationCancelledError("the generation was cancelled")))
        finished = False
        try:
            while not finished:
                answer = _next_answer(channel)
                assert isinstance(answer, protocol.EventReply)
                if isinstance(answer.event, Finished):
                    finished = True
                    self._supervisor.note_answer()
                yield answer.event
        finally:
            cancellation.attach(None)
            process.forget(number)
            if not finished:  # does nothing where the generation has failed
                process.send(protocol.Cancel(number))

    def count_tokens(self, prompt: Sequence[TextSpan | PromptImage]) -> TokenCount:
        answer = self._ask(protocol.CountTokens(next(self._supervisor.ids), tuple(prompt)))
        assert isinstance(answer, protocol.TokenCountReply)
        return answer.count

    def snapshot(self, prompt: Sequence[TextSpan | PromptImage]) -> Snapshot:
        answer = self._ask(protocol.TakeSnapshot(next(self._supervisor.ids), tuple(prompt)))
        assert isinstance(answer, protocol.SnapshotReply)
        return answer.snapshot

    def adopt(self, snapshot: Snapshot) -> None:
        self._ask(protocol.AdoptSnapshot(next(self._supervisor.ids), snapshot))

    def clear_picture_cache(self) -> None:
        self._ask(protocol.ClearPictureCache(next(self._supervisor.ids)))

    def cancel(self) -> None:
        self._supervisor.process.cancel_generations()

    def statistics(self) -> Statistics:
        return self._supervisor.statistics()

    def close(self) -> None:
        self._finalizer()

    def _ask(self, question: protocol.Question) -> protocol.Answer:
        channel = Channel()
        process = self._supervisor.wait_for_process()
        process.ask(question, channel)
        try:
            return _next_answer(channel)
        finally:
            process.forget(question.id)


def _next_answer(channel: Channel) -> protocol.Answer:
    """Wait for an answer. Raises the error that came instead of one."""
    answer = channel.get()
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, protocol.Failed):
        raise answer.error.exception()
    return answer


class _Supervisor:
    """Starts a process, reads it to its end on a thread of its own, and starts the next one."""

    def __init__(self, start: protocol.Start) -> None:
        self._start = start
        self._changed = threading.Condition()
        self._closed = False
        self._state: Literal["ok", "restarting", "failing"] = "ok"
        self._crashes = 0  # since the last answer
        self._restarts = 0
        self._latest = Statistics(parallel=start.options.parallel)  # of the running process
        self._ended = Statistics()  # totals of the processes that have ended
        self.ids = itertools.count()  # of questions
        self.process = self._new_process()
        self._reader = threading.Thread(target=self._supervise, name="pocketvlm-supervisor", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="pocketvlm-watch", daemon=True)
        try:
            self.info = self._wait_until_ready()
            self._reader.start()
            self._watcher.start()
        except BaseException:  # Ctrl-C while it loads, too: the process must not outlive its parent
            self._closed = True
            self.process.finish()
            raise

    def wait_for_process(self) -> EngineProcess:
        """Return the process that takes requests, when it is ready."""
        with self._changed:
            while self._state == "restarting" and not self._closed:
                self._changed.wait()
            if self._closed:
                raise EngineClosedError(_CLOSED)
            if self._state == "failing":
                raise EngineCrashedError(
                    f"the engine crashed {self._crashes} times in a row; it will be started again soon"
                )
            return self.process

    @property
    def state(self) -> Literal["ok", "restarting", "failing"]:
        return self._state

    def note_answer(self) -> None:
        """A generation has finished: the next crash is the first in a row."""
        self._crashes = 0

    def statistics(self) -> Statistics:
        """Return the process's own statistics, or the last ones known where it is too busy to answer."""
        process = self.process
        alive = self._state == "ok" and not self._closed
        if alive:
            self._ask_statistics(process)
            alive = self._state == "ok" and not self._closed
        gauges = {} if alive else dict.fromkeys(GAUGES, 0)
        child = process.pid if alive else None
        with self._changed:
            return replace(
                self._latest, **self._totals(), **gauges, state=self._state, restarts=self._restarts, child=child
            )

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self.process.close()
        self._reader.join()
        self._watcher.join()

    def _new_process(self) -> EngineProcess:
        return EngineProcess(self._start, Watchdog(self._start.options.stuck_after))

    def _wait_until_ready(self) -> EngineInfo:
        reply = self.process.read()
        if reply is None:
            self.process.finish()
            raise self.process.crash_error("while the model was loaded")
        if isinstance(reply, protocol.Refused):
            raise reply.error.exception()
        assert isinstance(reply, protocol.Ready)
        return reply.info

    def _watch(self) -> None:
        """Check the process at intervals, except while it loads: how long a disk may take is unknown."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._closed, self.process.watchdog.interval):
                if self._state == "ok":
                    self.process.check()

    def _supervise(self) -> None:
        while True:
            process, started = self.process, time.monotonic()
            try:
                while (reply := process.read()) is not None:
                    self._handle(process, reply)
            except Exception as error:  # such as a reply larger than memory: where the next one begins is unknown
                process.killed_because = f"because its replies could not be read: {quoted(error)}"
            if self._closed:
                process.finish(EngineClosedError(_CLOSED))
                return
            with self._changed:
                self._state = "restarting"
            if time.monotonic() - started > _HEALTHY_AFTER:
                self._crashes = 0
            process.finish()
            _log.error("%s (%d)", process.crash_error(), process.pid)
            if not self._restart():
                return

    def _handle(self, process: EngineProcess, reply: protocol.Reply) -> None:
        match reply:
            case protocol.ProgressReply(progress):
                process.watchdog.hear(progress)
            case protocol.StatisticsReply(_, statistics):
                self._latest = statistics
                process.deliver(reply)
            case protocol.Ready() | protocol.Refused():
                raise EngineError("the engine's process started twice")
            case _:
                process.deliver(reply)

    def _restart(self) -> bool:
        """Start processes until one is ready; False where the engine was closed meanwhile."""
        while True:
            self._crashes += 1
            with self._changed:
                totals: dict[str, Any] = self._totals()
                self._ended = Statistics(**totals)
                self._latest = Statistics(parallel=self._start.options.parallel)
            pause = _PAUSES[min(self._crashes, len(_PAUSES) - 1)]
            try:
                with self._changed:
                    if self._crashes >= _CRASH_LOOP:
                        self._state = "failing"
                        self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed, pause)
                    if self._closed:
                        return False
                    self._state = "restarting"
                    self.process = self._new_process()
                self._restarts += 1
                self._wait_until_ready()
            except Exception as error:  # the system's, too, where it gives no process
                self.process.finish()
                _log.error("the engine cannot be started again: %s", error)
                if self._closed:
                    return False
                continue
            with self._changed:
                self._state = "ok"
                self._changed.notify_all()
            return True

    def _totals(self) -> dict[str, int]:
        return self._latest.totals(self._ended)

    def _ask_statistics(self, process: EngineProcess) -> None:
        """Wait until the process's statistics are in `_latest`, until it has died, or for a while."""
        channel = Channel()
        question = protocol.GetStatistics(next(self.ids))
        try:
            process.ask(question, channel)
            with suppress(Empty):
                channel.get(timeout=_STATISTICS_TIMEOUT)
        finally:
            process.forget(question.id)
