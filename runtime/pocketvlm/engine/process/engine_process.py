"""One run of the engine's process, as seen from its parent."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import NamedTuple

from pocketvlm.engine.process import protocol
from pocketvlm.engine.process.watchdog import Watchdog
from pocketvlm.errors import EngineCrashedError, GenerationCancelledError
from pocketvlm.system.cgroup import oom_kills
from pocketvlm.system.limits import ONE_BLAS_THREAD, require_group_memory
from pocketvlm.system.subprocess import KILLED, OWN_GROUP, ending, python

_MEMORY = 56 << 20  # bytes: of Python and the libraries, without a model, on x86-64
_CLOSE_TIMEOUT = 5.0  # seconds between the request to end and the kill
_CODE = "from pocketvlm.engine.process.worker import main; main()"
Channel = SimpleQueue[protocol.Answer | Exception]  # the answers to one question; an exception is the last


class _Pending(NamedTuple):
    channel: Channel
    generation: bool


class EngineProcess:
    """Starts the process and sends requests. One thread must call `read` until the process ends, and then `finish`."""

    def __init__(self, start: protocol.Start, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self.killed_because = ""  # the last part of a message about its end
        require_group_memory(_MEMORY, "the engine's process")
        self._oom_kills = oom_kills()
        self._popen = subprocess.Popen(
            python(_CODE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**ONE_BLAS_THREAD, **os.environ},
            **OWN_GROUP,
        )
        self.pid = self._popen.pid
        self._pending: dict[int, _Pending] = {}  # by the question's id
        self._ended = False
        self._lock = threading.RLock()  # the garbage collector ends streams, on any thread, in any line
        self._outbox: SimpleQueue[Sequence[bytes | memoryview] | None] = SimpleQueue()
        # A thread writes: on the caller's, Ctrl-C would cut a frame, and a large picture would delay its request.
        self._writer = threading.Thread(target=self._write, name="pocketvlm-to-engine", daemon=True)
        try:
            self._writer.start()
        except RuntimeError:  # the system gives no thread
            self._popen.kill()
            self._popen.wait()
            raise
        self.send(start)

    def send(self, request: protocol.Request) -> None:
        self._outbox.put(protocol.REQUESTS.pack(request))

    def ask(self, question: protocol.Question, channel: Channel) -> None:
        """Send a question. Its answers go to `channel` until `forget`; EngineCrashedError where there will be none."""
        frame = protocol.REQUESTS.pack(question)
        with self._lock:
            self._pending[question.id] = _Pending(channel, isinstance(question, protocol.Generate))
            if self._ended:
                channel.put(self.crash_error())
            self._outbox.put(frame)

    def forget(self, number: int) -> None:
        """Drop further answers to the question with this id."""
        with self._lock:
            self._pending.pop(number, None)

    def cancel_generations(self) -> None:
        for number, pending in list(self._pending.items()):
            if pending.generation:
                self.send(protocol.Cancel(number))
                pending.channel.put(GenerationCancelledError("the generation was cancelled"))

    def read(self) -> protocol.Reply | None:
        """Wait for the next reply; None where the process has ended."""
        assert self._popen.stdout is not None
        return protocol.REPLIES.read(self._popen.stdout)

    def deliver(self, answer: protocol.Answer) -> None:
        """Hand an answer to the thread that waits for it, if one still does."""
        if (pending := self._pending.get(answer.id)) is not None:
            pending.channel.put(answer)

    def check(self) -> None:
        """Kill the process where it is stuck; `read` then returns None. Otherwise ask for its progress."""
        if reason := self.watchdog.look():
            self.killed_because = reason
            self._popen.kill()
        else:
            self.send(protocol.GetProgress())

    def close(self) -> None:
        """Ask the process to end, and kill it where it does not."""
        self.send(protocol.Close())
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_CLOSE_TIMEOUT)
        self._popen.kill()

    def finish(self, error: Exception | None = None) -> None:
        """Kill the process where it still runs, and free what it used.

        All pending questions get `error`, or else an EngineCrashedError.
        """
        self._popen.kill()
        code = self._popen.wait()
        if code == KILLED and not self.killed_because and oom_kills() > self._oom_kills:
            self.killed_because = "because the memory of its control group was full"
        self._outbox.put(None)
        self._writer.join()
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        with self._lock:
            self._ended = True
            for pending in list(self._pending.values()):
                pending.channel.put(error or self.crash_error())

    def crash_error(self, when: str = "") -> EngineCrashedError:
        """Return what to raise after the process has ended by itself or `check` has killed it."""
        parts = ("the engine's process", ending(self._popen.returncode), when, self.killed_because)
        return EngineCrashedError(" ".join(filter(None, parts)))

    def _write(self) -> None:
        assert self._popen.stdin is not None
        pipe = self._popen.stdin
        with suppress(OSError), pipe:  # the reading thread notices the end of the process
            while (frame := self._outbox.get()) is not None:
                pipe.writelines(frame)
                pipe.flush()
                del frame  # it may hold pictures, and the next one may be long in coming
