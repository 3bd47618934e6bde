"""The engine in a process of its own, which is started again when native code ends it."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

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
)
from pocketvlm.engine.process import protocol
from pocketvlm.engine.process.watchdog import Watchdog
from pocketvlm.errors import EngineClosedError, EngineCrashedError, GenerationCancelledError
from pocketvlm.native.sampler import Sampling
from pocketvlm.templates.prompt import TextSpan

_log = logging.getLogger(__name__)
_FAILING = 3  # crashes in a row, no answer between them
_PAUSES = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before the next start, by crashes in a row
_LIVED = 60.0  # seconds, after which a crash is the first in a row
_PATIENCE = 5.0  # seconds for a process that was asked to end
_ANSWER = 1.0  # seconds for its statistics
_START = "import sys; sys.path[:] = sys.argv[1:]; from pocketvlm.engine.process.worker import main; main()"
_GAUGES = ("running", "queued", "encoding", "picture_bytes")
_KEPT = ("state", "parallel", "restarts", "child")  # of the supervisor's own making
_TOTALS = tuple(field.name for field in fields(Statistics) if field.name not in (*_GAUGES, *_KEPT))
# A terminal's Ctrl-C is for the parent. In another session, it would compete with it for cores, sched(7).
_APART: Any = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
Channel = SimpleQueue[Any]  # of events and an error, or the one answer to a question


class SupervisedEngine:
    """Takes what `InProcessEngine` takes, and raises the same; EngineCrashedError where native code dies while loading.

    When the process dies, or is killed as it is stuck, all its requests get EngineCrashedError at once and it is
    started again; requests that come meanwhile wait for it. After some crashes in a row the pauses between two starts
    grow, and requests that come in such a pause are refused with EngineCrashedError.
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
        made_from = protocol.encode_engine(model, mmproj, onnx, name=name, fingerprint=fingerprint, options=options)
        self._supervisor = _Supervisor(made_from, options)
        self._numbers = itertools.count()
        # Its thread would keep the supervisor alive for ever; this also ends the process at exit.
        self._finalizer = weakref.finalize(self, self._supervisor.close)

    @property
    def info(self) -> EngineInfo:
        return self._supervisor.info

    def generate(
        self, request: Generation, cancellation: CancellationToken | None = None
    ) -> Generator[Event, None, None]:
        message, blobs = protocol.encode_generation(request)
        number = next(self._numbers)
        channel: Channel = SimpleQueue()
        process = self._supervisor.running()
        process.ask({"kind": "generate", "id": number, **message}, blobs, number, channel)
        del message, blobs
        event: Event | Exception | None = None
        cancellation = cancellation or CancellationToken()
        cancellation.attach(lambda: channel.put(GenerationCancelledError("the generation was cancelled")))
        try:
            while not isinstance(event, Finished | Exception):
                event = channel.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Finished):
                    self._supervisor.answered()
                yield event
        finally:
            cancellation.attach(None)
            process.forget(number)
            if not isinstance(event, Finished | Exception) or isinstance(event, GenerationCancelledError):
                process.ask({"kind": "cancel", "id": number})

    def snapshot(self, prompt: Sequence[TextSpan | PromptImage]) -> Snapshot:
        message, blobs = protocol.encode_generation(Generation(tuple(prompt), Sampling()))
        return self._wait({"kind": "snapshot", **message}, blobs)

    def adopt(self, snapshot: Snapshot) -> None:
        told, blobs = protocol.encode_snapshot(snapshot)
        self._wait({"kind": "adopt", "snapshot": told}, blobs)

    def _wait(self, message: Mapping[str, Any], blobs: Sequence[memoryview]) -> Snapshot:
        number = next(self._supervisor.questions)
        channel: Channel = SimpleQueue()
        process = self._supervisor.running()
        process.ask({**message, "id": number}, blobs, number, channel)
        try:
            found: Snapshot | Exception = channel.get()
        finally:
            process.forget(number)
        if isinstance(found, Exception):
            raise found
        return found

    def cancel(self) -> None:
        self._supervisor.cancel()

    def statistics(self) -> Statistics:
        return self._supervisor.statistics()

    def clear_picture_cache(self) -> None:
        self._wait({"kind": "clear_picture_cache"}, ())

    def close(self) -> None:
        self._finalizer()


class _Process:
    """One life of the child: started, asked and read; `finish` leaves nothing of it."""

    def __init__(self, made_from: Mapping[str, Any], watch: Watchdog) -> None:
        self.watch = watch
        self.why = ""  # it had to be killed
        paths = [str(Path(path).absolute()) for path in sys.path if path]
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _START, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # an abort would first look for a debugger
            **_APART,
        )
        self.pid = self._popen.pid
        self.channels: dict[int, Channel] = {}
        self._dead = False
        self._changing = threading.RLock()  # the garbage collector ends streams, on any thread, in any line
        self._outbox: SimpleQueue[Sequence[bytes | memoryview] | None] = SimpleQueue()
        # Written by a thread of its own: a Ctrl-C would cut a frame, and a big picture would hold up its request.
        self._writer = threading.Thread(target=self._write, name="pocketvlm-to-engine", daemon=True)
        self._writer.start()
        self.ask(made_from)

    def ask(
        self,
        message: Mapping[str, Any],
        blobs: Sequence[memoryview] = (),
        number: int | None = None,
        channel: Channel | None = None,
    ) -> None:
        """Send a frame; answers to `number` go to `channel`, also that there will be none."""
        frame = protocol.pack(message, blobs)
        with self._changing:
            if number is not None and channel is not None:
                self.channels[number] = channel
                if self._dead:
                    channel.put(_crashed(self._popen.returncode, self.why))
            self._outbox.put(frame)

    def forget(self, number: int) -> None:
        with self._changing:
            self.channels.pop(number, None)

    def read(self) -> protocol.Frame | None:
        assert self._popen.stdout is not None
        return protocol.read(self._popen.stdout)

    def give(self, message: dict[str, Any], blob: memoryview) -> None:
        """Hand an event to the request that it answers."""
        channel = self.channels.get(message.pop("id"))
        if channel is not None:
            channel.put(protocol.decode_event(message, blob))

    def finish(self, error: Exception | None = None) -> int:
        """Reap it, killing it if need be, and tell those who wait; its exit status."""
        self._popen.kill()
        code = self._popen.wait()
        self._outbox.put(None)
        self._writer.join()
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        with self._changing:
            self._dead = True
            for channel in list(self.channels.values()):
                channel.put(error or _crashed(code, self.why))
        return code

    def look(self) -> None:
        """Kill it where it is stuck; whoever reads it sees its end."""
        if why := self.watch.look():
            self.why = why
            self._popen.kill()
        else:
            self.ask({"kind": "look"})

    def stop(self) -> None:
        """Ask it to end, then make it."""
        self.ask({"kind": "close"})
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_PATIENCE)
        self._popen.kill()

    def _write(self) -> None:
        assert self._popen.stdin is not None
        pipe = self._popen.stdin
        with suppress(OSError), pipe:  # who reads the answers sees its end
            while (frame := self._outbox.get()) is not None:
                pipe.writelines(frame)
                pipe.flush()
                del frame  # pictures among it, until the next one comes


class _Supervisor:
    """Starts a process, reads it to its end on a thread of its own, and starts the next."""

    def __init__(self, made_from: Mapping[str, Any], options: EngineOptions) -> None:
        self._made_from = made_from
        self._stuck_after = options.stuck_after
        self._changed = threading.Condition()
        self._closed = False
        self._state: Literal["ok", "restarting", "failing"] = "ok"
        self._crashes = 0  # since the last answer
        self._restarts = 0
        self._latest = Statistics(parallel=options.parallel)
        self._before = Statistics()  # totals of the processes that died
        self.questions = itertools.count(-1, -1)  # their numbers; those of generations are not negative
        self._process = _Process(made_from, Watchdog(self._stuck_after))
        try:
            self.info = self._ready(self._process)
        except BaseException:  # Ctrl-C while it loads: the process must not outlive us
            self._process.finish()
            raise
        self._thread = threading.Thread(target=self._supervise, name="pocketvlm-supervisor", daemon=True)
        self._thread.start()
        self._watcher = threading.Thread(target=self._watch, name="pocketvlm-watch", daemon=True)
        self._watcher.start()

    def running(self) -> _Process:
        """The process that takes requests; waits while it is started again."""
        with self._changed:
            while self._state == "restarting" and not self._closed:
                self._changed.wait()
            if self._closed:
                raise EngineClosedError("the model is closed")
            if self._state == "failing":
                raise EngineCrashedError(f"the engine crashed {self._crashes} times in a row; it is tried again soon")
            return self._process

    def answered(self) -> None:
        self._crashes = 0

    def cancel(self) -> None:
        process = self._process
        for number, channel in list(process.channels.items()):
            if number >= 0:
                process.ask({"kind": "cancel", "id": number})
                channel.put(GenerationCancelledError("the generation was cancelled"))

    def statistics(self) -> Statistics:
        process = self._process
        if self._state == "ok" and not self._closed:
            with suppress(Empty):  # it is busy: what it said last must do
                self._told(process)
        latest, before = self._latest, self._before
        totals = {name: getattr(latest, name) + getattr(before, name) for name in _TOTALS}
        alive = self._state == "ok" and not self._closed
        gauges = {} if alive else dict.fromkeys(_GAUGES, 0)
        return replace(
            latest, **totals, **gauges, state=self._state, restarts=self._restarts, child=process.pid if alive else None
        )

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._process.stop()
        self._thread.join()
        self._watcher.join()

    def _watch(self) -> None:
        """A process that loads is not looked at: nobody knows how long a disk may take."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._closed, self._process.watch.interval):
                if self._state == "ok":
                    self._process.look()

    def _supervise(self) -> None:
        while True:
            process, born = self._process, time.monotonic()
            try:
                while (frame := process.read()) is not None:
                    self._take(process, *frame)
            except Exception as error:  # more than memory holds: what follows has no beginning any more
                process.why = f"as its answers could not be read: {error!r}"
            if self._closed:
                process.finish(EngineClosedError("the model is closed"))
                return
            with self._changed:
                self._state = "restarting"
            if time.monotonic() - born > _LIVED:
                self._crashes = 0
            code = process.finish()
            _log.error("%s (%d)", _crashed(code, process.why), process.pid)
            if not self._restart():
                return

    def _restart(self) -> bool:
        """Until a process is ready; False where the engine was closed meanwhile."""
        while True:
            self._crashes += 1
            self._bury()
            pause = _PAUSES[min(self._crashes, len(_PAUSES) - 1)]
            try:
                with self._changed:
                    if self._crashes >= _FAILING:
                        self._state = "failing"
                        self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed, pause)
                    if self._closed:
                        return False
                    self._state = "restarting"
                    self._process = _Process(self._made_from, Watchdog(self._stuck_after))
                self._restarts += 1
                self._ready(self._process)
            except Exception as error:  # of the system, too, where it gives no process
                self._process.finish()
                _log.error("the engine cannot be started again: %s", error)
                if self._closed:
                    return False
                continue
            with self._changed:
                self._state = "ok"
                self._changed.notify_all()
            return True

    def _bury(self) -> None:
        """Add the totals of a dead process to those of its forerunners."""
        totals = {name: getattr(self._latest, name) + getattr(self._before, name) for name in _TOTALS}
        self._before = Statistics(**totals)
        self._latest = Statistics(parallel=self._latest.parallel)

    def _ready(self, process: _Process) -> EngineInfo:
        frame = process.read()
        if frame is None:
            raise _crashed(process.finish(), "while the model was loaded")
        if "refused" in frame[0]:
            raise protocol.decode_error(frame[0]["refused"])
        return protocol.decode_info(frame[0]["ready"])

    def _told(self, process: _Process) -> None:
        """Ask for its statistics; returns when they are there, or when the process died. Raises Empty after a while."""
        channel: Channel = SimpleQueue()
        number = next(self.questions)
        try:
            process.ask({"kind": "statistics", "id": number}, (), number, channel)
            channel.get(timeout=_ANSWER)
        finally:
            process.forget(number)

    def _take(self, process: _Process, message: dict[str, Any], blob: memoryview) -> None:
        if "doing" in message:
            process.watch.hear(message["doing"])
            return
        if "statistics" in message:
            self._latest = Statistics(**message["statistics"])
            message = {"id": message["id"], "finished": "stop"}  # it is there: nothing more is said
        process.give(message, blob)


def _crashed(code: int | None, when: str = "") -> EngineCrashedError:
    return EngineCrashedError(" ".join(filter(None, ("the engine's process", _ended(code), when))))


def _ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with status {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
