"""The models that the server answers with, and who uses them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pocketvlm.chat.vlm import VLM
from pocketvlm.server.admission import Admission
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.settings import Settings

_NO_MODEL = (None, "", "dummy")  # huggingface_hub sends the last where the caller names no model
_COUNTS = 2  # requests that are counted at the same time: their pictures are decoded


@dataclass
class ServedModel:
    """One model: its name for clients, when it was first served (seconds since 1970), and the queues for it.

    What only counts tokens has a queue of its own, so that it need not wait for the end of an answer.
    """

    name: str
    vlm: VLM
    admission: Admission
    counting: Admission
    created: int = field(default_factory=lambda: int(time.time()))


class Lease:
    """The right of one request to use a loaded model, until `release`. For the event loop only."""

    def __init__(self, admission: Admission, vlm: VLM) -> None:
        self._admission = admission
        self._taken = time.perf_counter()
        self.vlm = vlm

    def release(self) -> None:
        self._admission.leave(time.perf_counter() - self._taken)


class Models:
    def __init__(self, vlm: VLM, settings: Settings) -> None:
        self._strict = settings.strict_model
        answering, counting = Admission(settings.slots, settings.queue), Admission(_COUNTS, settings.queue)
        self._models = [ServedModel(vlm.info.name, vlm, answering, counting)]

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

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
            return self._models[0]
        assert name is not None
        return self.named(name)

    async def lease(self, model: ServedModel, *, counts: bool = False) -> Lease:
        """Wait for a slot of the model. Raises QueueFullError at once where its queue is full.

        `counts`: the request evaluates nothing.
        """
        admission = model.counting if counts else model.admission
        await admission.enter()
        return Lease(admission, model.vlm)


def _unknown(served: Sequence[str]) -> HTTPError:
    return HTTPError(404, f"model: there is no such model here; use {' or '.join(served)}", "model", "model_not_found")
