"""The models that the server answers with: which of them are loaded, and which has to leave for another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pocketvlm.engine.interface import Statistics
from pocketvlm.server.admission import Admission
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.served_model import ModelSource, ServedModel
from pocketvlm.server.settings import Settings

_NO_MODEL = (None, "", "dummy")  # huggingface_hub sends the last where the caller names no model
_COUNTS = 2  # requests that are counted at the same time: their pictures may have to be decoded
_IDLE_UNLOAD = 300.0  # seconds, with several models


class Lease:
    """The right of one request to use a loaded model, until `release`. For the event loop only.

    It waited `queue_ms` milliseconds for its turn, and `load_ms` for the model to be loaded.
    """

    def __init__(self, models: Models, model: ServedModel, admission: Admission, arrived: float) -> None:
        self._models = models
        self._model = model
        self._admission = admission
        self._taken = time.monotonic()
        self.vlm = model.vlm
        began, ended = model.load_span
        loading = max(0.0, min(ended, self._taken) - max(began, arrived))
        self.load_ms = 1000 * loading
        self.queue_ms = 1000 * (self._taken - arrived - loading)

    def release(self) -> None:
        self._model.end_use(self._admission, time.monotonic() - self._taken)
        self._models.arrange_soon()


class Models:
    """The first of `sources` answers requests that name no model.

    `memory` is what the engines of all models may take together, in bytes, as predicted; None: there is no limit; 0: it
    is not known, and one model is loaded at a time.

    One model is loaded or unloaded at a time. When one that requests wait for does not fit, idle models are unloaded,
    the least recently used one first. Where that is not enough, others are closed to new requests: those that already
    wait there are still answered, so a model waits for one turn of another at most.
    """

    def __init__(self, sources: Sequence[ModelSource], settings: Settings, memory: int | None = None) -> None:
        self._strict = settings.strict_model
        self._memory = memory
        keep_alive = settings.idle_unload
        if keep_alive is None and len(sources) > 1:
            keep_alive = _IDLE_UNLOAD
        self._models = [
            ServedModel(
                source,
                admission=Admission(settings.slots, settings.queue, opened=False),
                counting=Admission(_COUNTS, settings.queue, opened=False),
                keep_alive=keep_alive or None,
            )
            for source in sources
        ]
        self._arranging = False
        self._alarm: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    @property
    def first(self) -> ServedModel:
        return self._models[0]

    @property
    def running(self) -> int:
        """Requests that run, of all models together."""
        return sum(model.admission.running for model in self._models)

    @property
    def waiting(self) -> int:
        return sum(model.admission.waiting for model in self._models)

    def named(self, name: str) -> ServedModel:
        """Raises HTTPError 404 where no model has exactly this name."""
        for model in self._models:
            if model.name == name:
                return model
        raise _unknown([model.name for model in self._models])

    def asked(self, name: str | None) -> ServedModel:
        """Return the model for a request that names `name`. A single model answers to every name, unless strict."""
        if name in _NO_MODEL or (len(self._models) == 1 and not self._strict):
            return self.first
        assert name is not None
        return self.named(name)

    async def lease(
        self, model: ServedModel, keep_alive: float | None = None, *, counts: bool = False, only_loads: bool = False
    ) -> Lease:
        """Wait until the model is loaded and has a free slot. Raises QueueFullError at once where its queue is full.

        After the request the model stays loaded for `keep_alive` seconds: 0 unloads it then, a negative number keeps it
        for ever, None is the server's default. Raises HTTPError where the model cannot be loaded, or could not a moment
        ago. A request that leaves while the model is being loaded does not stop that.

        The request evaluates nothing if it `counts` tokens, which is no use of the model, or `only_loads` the model.
        """
        if (failure := model.recent_failure) is not None:
            raise failure
        admission = model.counting if counts or only_loads else model.admission
        arrived = time.monotonic()
        self.arrange_soon()
        try:
            await admission.enter()
        except BaseException:
            self.arrange_soon()  # a model may have been closed for this request
            raise
        if not counts:
            model.begin_use(keep_alive)
        return Lease(self, model, admission, arrived)

    def unload(self, name: str) -> None:
        """Unload a model as soon as its requests have ended, unless others come. Raises HTTPError 404."""
        self.named(name).keep_alive = 0.0
        self.arrange_soon()

    def statistics(self) -> list[tuple[ServedModel, Statistics]]:
        """Return the statistics of each model. Takes up to a second; not for the event loop."""
        if len(self._models) == 1:
            return [(self.first, self.first.statistics())]
        with ThreadPoolExecutor(len(self._models)) as threads:
            return [*zip(self._models, threads.map(ServedModel.statistics, self._models), strict=True)]

    def preload(self) -> None:
        """Load the first model before a request asks for it."""
        if self.first.state == "unloaded":
            self.first.begin_load(self.arrange_soon)

    def arrange_soon(self) -> None:
        """Look soon at what is to be loaded and unloaded, after a change."""
        if not self._arranging:
            self._arranging = True
            asyncio.get_running_loop().call_soon(self._arrange)

    def close(self) -> None:
        """End all engines. For any thread, after the event loop has ended."""
        threads = [threading.Thread(target=model.close) for model in self._models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _arrange(self) -> None:
        """Begin what can be done now: unload models that are to leave, or load the one that was asked for first."""
        self._arranging = False
        if any(model.state in ("loading", "unloading") for model in self._models):
            return
        wanted = self._wanted()
        leaving = self._to_leave_for(wanted) if wanted is not None else []
        now = time.monotonic()
        for model in self._models:
            if model.state != "ready":
                continue
            if model in leaving:
                model.close_queues()
            else:
                model.open_queues()
            is_over = model.idle_until is not None and model.idle_until <= now
            if not model.is_busy and (model in leaving or is_over):
                model.begin_unload(self.arrange_soon)
        if wanted is not None and not leaving:
            wanted.begin_load(self.arrange_soon)
        self._set_alarm()

    def _wanted(self) -> ServedModel | None:
        """Return the model to load next: the one with the request that came first."""
        waiting = [
            (model.waiting_since, number)
            for number, model in enumerate(self._models)
            if model.state in ("unloaded", "failed") and model.waiting_since is not None
        ]
        return self._models[min(waiting)[1]] if waiting else None

    def _to_leave_for(self, wanted: ServedModel) -> list[ServedModel]:
        """Return the loaded models without which there is room for `wanted`; none where there is room."""
        if self._memory is None:
            return []
        candidates = sorted((model for model in self._models if model.state == "ready"), key=_order_of_leaving)
        if self._memory == 0:
            return candidates
        room = self._memory - sum(model.source.memory for model in self._models if model.has_memory)
        missing = wanted.source.memory - room
        chosen: list[ServedModel] = []
        for model in candidates:
            if missing > 0:
                chosen.append(model)
                missing -= model.source.memory
        for model in reversed(chosen[:-1]):  # a later, larger one may have made it needless
            if missing + model.source.memory <= 0:
                chosen.remove(model)
                missing += model.source.memory
        return chosen

    def _set_alarm(self) -> None:
        """Arrange again when the next idle model is to be unloaded."""
        if self._alarm is not None:
            self._alarm.cancel()
        idle = [model for model in self._models if model.state == "ready" and not model.is_busy]
        ends = [model.idle_until for model in idle if model.idle_until is not None]
        loop = asyncio.get_running_loop()
        wait = max(0.0, min(ends) - time.monotonic()) if ends else None
        self._alarm = loop.call_later(wait, self.arrange_soon) if wait is not None else None


def _order_of_leaving(model: ServedModel) -> tuple[bool, bool, float]:
    """Idle models leave first, then those that are closed already, so that the choice stays; the last used one last."""
    return model.is_busy, model.admission.is_open, model.last_used


def _unknown(served: Sequence[str]) -> HTTPError:
    return HTTPError(404, f"model: there is no such model here; use {' or '.join(served)}", "model", "model_not_found")
