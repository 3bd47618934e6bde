"""The Engine protocol: a request in, events out, cancel. `VLM` knows nothing else about how tokens are made."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, Protocol

from pocketvlm.images import Picture
from pocketvlm.native.sampler import Sampling
from pocketvlm.prompt import TextSpan
from pocketvlm.vision.family import Detail


@dataclass(frozen=True)
class Image:
    """`param` is the path of the request's field, for errors."""

    picture: Picture
    detail: Detail
    max_tokens: int | None
    param: str


@dataclass(frozen=True)
class Generation:
    """One prompt and how to go on from it. `top_logprobs` None: no log probabilities at all."""

    prompt: tuple[TextSpan | Image, ...]
    sampling: Sampling
    max_tokens: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Progress:
    """A tile is about to be encoded: the `done`-th of `total` that are not in a cache."""

    done: int
    total: int


@dataclass(frozen=True)
class ImageReport:
    """Sizes are (width, height); milliseconds. `cached` where no tile had to be encoded."""

    original: tuple[int, int]
    used: tuple[int, int]
    tiles: int
    tokens: int
    shrunk: bool
    cached: bool
    read_ms: float
    preprocess_ms: float
    encode_ms: float


@dataclass(frozen=True)
class Started:
    """The prompt is evaluated."""

    prompt_tokens: int
    cached_tokens: int
    images: tuple[ImageReport, ...]
    prefill_ms: float


@dataclass(frozen=True)
class Score:
    """Natural logarithms of the model's own distribution, before any sampler; `top` sorted, best first."""

    logprob: float
    top: tuple[tuple[int, bytes, float], ...]


@dataclass(frozen=True)
class Token:
    id: int
    data: bytes  # may end within a UTF-8 character
    score: Score | None = None


@dataclass(frozen=True)
class Finished:
    reason: Literal["stop", "length"]


Event = Progress | Started | Token | Finished


@dataclass(frozen=True)
class EngineInfo:
    """What a face needs to know about the model behind an engine."""

    name: str
    chat_template: str | None
    bos: str
    eos: str
    control_tokens: frozenset[str]
    image_token: str | None
    has_vision: bool
    vision: str | None
    context_size: int
    fingerprint: str


class Engine(Protocol):
    """Serves one generation at a time; a second thread waits for its turn.

    A thread that starts a generation before its last one ended or was closed gets EngineBusyError: it would wait
    for itself.
    """

    @property
    def info(self) -> EngineInfo: ...

    def generate(self, request: Generation) -> Generator[Event, None, None]:
        """Progress*, Started, Token*, Finished. Closing the iterator stops the work within one token."""
        ...

    def cancel(self) -> None:
        """Stop the running generation, from any thread: its iterator raises GenerationCancelledError."""
        ...

    def close(self) -> None: ...
