"""One model of the server: whether it is loaded, how many requests use it, and when it is to be unloaded."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from pocketvlm.chat.vlm import VLM
from pocketvlm.engine.interface import Statistics
from pocketvlm.errors import PocketVLMError, RequestError, shortened
from pocketvlm.server.admission import Admission
from pocketvlm.server.http_errors import HTTPError, http_error_of
from pocketvlm.server.model_facts import ModelFacts
from pocketvlm.system.machine import process_memory

logger = logging.getLogger(__name__)
_RETRY_LOAD = 5.0  # seconds after a failure in which no request tries again, as other models would leave for it
_RETRY_UNLOAD = 1.0  # seconds
State = Literal["unloaded", "loading", "ready", "unloading", "failed"]


@dataclass(frozen=True)
class ModelSource:
    """A model that can be served. `memory` is what its engine takes, as predicted, in bytes; 0 where it is not known.

    `load` may be called again after the VLM that it has returned was closed.
    """

    facts: ModelFacts
    load: Callable[[], VLM]
    memory: int = 0


class ServedModel:
    """For the event loop only, but for `vision`, `device_bytes`, `statistics`, `measured_memory` and
    `close`.

    What evaluates nothing has a queue of its own, `counting`, so that it need not wait for the end of an answer.
    `state` is "failed" after an attempt to load it that failed, of which `failure` is the reason; it is loaded again
    when a request comes some seconds later. `keep_alive` is for how many seconds it stays loaded without requests;
    None: for ever.
    """

    def __init__(
        self, source: ModelSource, *, admission: Admission, counting: Admission, keep_alive: float | None
    ) -> None:
        self.source = source
        self.admission = admission
        self.counting = counting
        self.state: State = "unloaded"
        self.created = int(time.time())
        self.loads = self.load_failures = 0
        self.load_span = (0.0, 0.0)  # of time.monotonic: the last time that it was loaded
        self.last_used = 0.0  # of time.monotonic
        self._default_keep_alive = self.keep_alive = keep_alive
        self._queues = (admission, counting)
        self._lock = threading.Lock()
        self._vlm: VLM | None = None
        self._ended = Statistics()  # of the engines that were unloaded
        self._failure: HTTPError | None = None
        self._closed = False

    @property
    def facts(self) -> ModelFacts:
        return self.source.facts

    @property
    def name(self) -> str:
        return self.source.facts.name

    @property
    def vlm(self) -> VLM:
        """The loaded model, in the state "ready"."""
        assert self._vlm is not None
        return self._vlm

    @property
    def vision(self) -> str:
        """The kind of vision encoder; "" where there is none, or while the model is not loaded. For any thread."""
        vlm = self._vlm
        return vlm.info.vision or "" if vlm is not None else ""

    @property
    def device_bytes(self) -> int:
        """What the loaded model takes of a GPU's memory, as predicted. For any thread."""
        vlm = self._vlm
        return vlm.info.device_bytes if vlm is not None else 0

    @property
    def load_seconds(self) -> float:
        """How long it took to be loaded the last time; so far, while it is being loaded."""
        began, ended = self.load_span
        return min(ended, time.monotonic()) - began

    @property
    def failure(self) -> str:
        return self._failure.message if self._failure is not None else ""

    @property
    def recent_failure(self) -> HTTPError | None:
        """What a request that comes now gets at once, because loading failed a moment ago."""
        is_recent = self.state == "failed" and time.monotonic() < self.load_span[1] + _RETRY_LOAD
        return replace(self._failure) if self._failure is not None and is_recent else None

    @property
    def has_memory(self) -> bool:
        """Whether its engine takes memory."""
        return self.state in ("loading", "ready", "unloading")

    @property
    def is_busy(self) -> bool:
        return self.admission.running + self.counting.running > 0

    @property
    def waiting_since(self) -> float | None:
        """When the first of the requests that wait came (`time.monotonic`)."""
        return min((since for queue in self._queues if (since := queue.oldest) is not None), default=None)

    @property
    def idle_until(self) -> float | None:
        """When it is to be unloaded (`time.monotonic`) if no request comes; None: never. In the state "ready" only."""
        return None if self.keep_alive is None else self.last_used + self.keep_alive

    @property
    def expires_at(self) -> float | None:
        """When it is to be unloaded, in seconds since 1970; None where it is not loaded, or stays for ever."""
        if self.state != "ready" or self.keep_alive is None:
            return None
        idle_since = time.monotonic() if self.is_busy else self.last_used
        return time.time() + idle_since + self.keep_alive - time.monotonic()

    def waits_for(self) -> str:
        """Say what a request that has not begun waits for."""
        return "queued" if self.state == "ready" else f"loading {shortened(self.name)}"

    def begin_use(self, keep_alive: float | None) -> None:
        """Note that a request has begun. `keep_alive` replaces the default from now on; a negative one means for ever.

        None sets the default again.
        """
        self.keep_alive = self._default_keep_alive if keep_alive is None else keep_alive if keep_alive >= 0 else None
        self.last_used = time.monotonic()

    def end_use(self, queue: Admission, seconds: float) -> None:
        """Free the slot of a request that has run for `seconds`."""
        self.last_used = time.monotonic()
        queue.leave(seconds)

    def open_queues(self) -> None:
        for queue in self._queues:
            queue.open()

    def close_queues(self) -> None:
        """Let those that wait now still begin, and later ones wait."""
        for queue in self._queues:
            queue.close()

    def adopt(self, vlm: VLM) -> None:
        """Be ready with a VLM that `source.load` has returned already."""
        with self._lock:
            self._vlm = vlm
        self._become_ready()

    def begin_load(self, done: Callable[[], None]) -> None:
        """Load it on a thread; then call `done`. If that fails, the requests that wait get the error."""
        self.state = "loading"
        self.load_span = (time.monotonic(), float("inf"))
        self._in_thread(self._load, lambda error: self._loaded(error, done))

    def begin_unload(self, done: Callable[[], None]) -> None:
        """End its engine on a thread; then call `done`. No request may run."""
        self.close_queues()
        self.state = "unloading"
        self._in_thread(self._unload, lambda error: self._unloaded(error, done))

    def statistics(self) -> Statistics:
        """Return gauges of the loaded engine, and totals of all that were loaded. Takes up to a second."""
        with self._lock:
            vlm, ended = self._vlm, self._ended
        latest = vlm.statistics() if vlm is not None else Statistics()
        return _added(latest, ended)

    def measured_memory(self) -> int | None:
        """Return what the engine's process takes, mapped files included; None where it is not known."""
        child = self.statistics().child
        size = process_memory(child) if child is not None else None
        return size.resident if size else None

    def close(self) -> None:
        """End the engine, and that which is being loaded as soon as it is."""
        with self._lock:
            self._closed = True
            vlm, self._vlm = self._vlm, None
        if vlm is not None:
            vlm.close()

    def _become_ready(self) -> None:
        self.state = "ready"
        self._failure = None
        self.last_used = time.monotonic()
        self.open_queues()

    def _load(self) -> None:
        vlm = self.source.load()
        with self._lock:
            if not self._closed:
                self._vlm = vlm
                return
        vlm.close()

    def _loaded(self, error: BaseException | None, done: Callable[[], None]) -> None:
        self.load_span = (self.load_span[0], time.monotonic())
        if error is None:
            self.loads += 1
            self._become_ready()
            logger.info("model %s is ready after %.1f s", shortened(self.name), self.load_seconds)
        else:
            self.load_failures += 1
            self.state = "failed"
            self._failure = _load_failure(error)
            logger.error("model %s cannot be loaded: %s", shortened(self.name), self.failure)
            for queue in self._queues:
                queue.fail(self._failure)
        done()

    def _unload(self) -> None:
        with self._lock:
            vlm = self._vlm
        if vlm is None:  # closed meanwhile
            return
        final = Statistics()
        try:
            final = vlm.statistics()
        finally:
            vlm.close()
            with self._lock:
                self._ended = _added(final, self._ended)
                self._vlm = None

    def _unloaded(self, error: BaseException | None, done: Callable[[], None]) -> None:
        if error is not None:
            logger.error("model %s was not unloaded in order: %s", shortened(self.name), type(error).__name__)
        if self._vlm is not None:  # there was no thread, or its engine does not end
            self._become_ready()
            asyncio.get_running_loop().call_later(_RETRY_UNLOAD, done)
            return
        self.state = "unloaded"
        self.keep_alive = self._default_keep_alive
        done()

    def _in_thread(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Call `work` on a thread of its own and then `done`, with the error that it raised, on the loop's thread.

        A daemon, unlike those of `asyncio.to_thread`: the server ends although a model is still being loaded. The
        engine's process then ends by itself.
        """
        loop = asyncio.get_running_loop()

        def run() -> None:
            error = None
            try:
                work()
            except BaseException as raised:  # `done` gets it
                error = raised
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done, error)

        try:
            threading.Thread(target=run, name="pocketvlm-load", daemon=True).start()
        except RuntimeError as error:  # the system gives no thread
            loop.call_soon(done, error)


def _added(latest: Statistics, ended: Statistics) -> Statistics:
    """Return the gauges of `latest`, with the totals of both."""
    totals: dict[str, Any] = latest.totals(ended)
    return replace(latest, **totals, restarts=latest.restarts + ended.restarts)


def _load_failure(error: BaseException) -> HTTPError:
    """Return what clients get, who are not to blame: without paths. A RequestError is about the server's options."""
    if isinstance(error, RequestError):
        return HTTPError(500, str(error), code=error.code or "model_error")
    known = http_error_of(error)
    if isinstance(error, PocketVLMError):
        return replace(known, message=getattr(error, "message", None) or str(error))
    return known
