"""The Engine protocol: requests in, events out, cancel. `VLM` knows nothing else about how tokens are made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from pocketvlm.engine.speculative.draft_length import MODES, Speculate
from pocketvlm.errors import RequestError
from pocketvlm.messages import ImageTimings
from pocketvlm.native.grammar import Constraint
from pocketvlm.native.sampler import Sampling
from pocketvlm.pictures.images import Picture
from pocketvlm.system.json_types import ByteArray, SystemText
from pocketvlm.templates.prompt import TextSpan
from pocketvlm.vision.compatibility import EncoderChoice
from pocketvlm.vision.family import Detail

PICTURE_FILES_SIZE = 1 << 30  # bytes
_ANY = 2**63
_LIMITS = {  # ggml ends the process over its own limits: GGML_MAX_N_THREADS (ggml.h), LLAMA_MAX_SEQ (llama-cparams.h)
    "context_size": (1, 1 << 24),  # longer than any model was trained for, and its table alone a gigabyte
    "threads": (1, 512),
    "gpu_layers": (-1, _ANY),
    "parallel": (1, 256),
    "picture_cache_size": (0, _ANY),
    "picture_files_size": (0, _ANY),
}
_OPTIONAL = ("context_size", "threads", "picture_cache_size")


@dataclass(frozen=True)
class EngineOptions:
    """`context_size` of each request; None: the model's own, capped. `exact`: reproducible logits, but slower.

    `parallel` requests run together, the others wait. `vision` says which encoder, `device` where
    it all runs: auto, cpu, a device of llama.cpp's build or of onnxruntime. `gpu_layers` -1: as many as fit.
    Embeddings of pictures are kept in memory within
    `picture_cache_size` bytes (None: as `vision.cache` says), and within `picture_files_size` in files in the folder
    `picture_cache`, if there is one.

    `speculate`: whether what answers repeat, of their prompts and of themselves, is drafted and evaluated at once;
    "auto" where steps were measured to gain by it, not with `exact`. Never where the cache cannot be cut back.

    An engine in a process of its own is started again where one step or tile takes more than `stuck_after` seconds, or
    where that process does not answer for as long, or a minute.
    """

    context_size: int | None = None
    threads: int | None = None
    gpu_layers: int = -1
    exact: bool = False
    vision: EncoderChoice = "auto"
    device: str = "auto"
    parallel: int = 1
    picture_cache_size: int | None = None
    picture_cache: SystemText | None = None
    picture_files_size: int = PICTURE_FILES_SIZE
    stuck_after: float = 600.0
    speculate: Speculate = "auto"

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if type(value) is not int:
                raise RequestError("must be a whole number", name)
            if not least <= value <= most:
                raise RequestError(
                    f"must be from {least:,} to {most:,}" if most < _ANY else f"must be at least {least}", name
                )
        if not self.stuck_after > 0:
            raise RequestError("must be more than 0", "stuck_after")
        if self.speculate not in MODES:
            raise RequestError(f"must be {', '.join(MODES)}", "speculate")


@dataclass(frozen=True)
class PromptImage:
    """`param` is the path of the request's field, for errors."""

    picture: Picture
    detail: Detail
    max_tokens: int | None
    param: str


@dataclass(frozen=True)
class Generation:
    """One prompt and how to go on from it. `top_logprobs` None: no log probabilities at all.

    With a `constraint` every token keeps to it, and the answer ends where nothing can follow; where `max_tokens` ends
    it before, it is unfinished. With `ignore_eos`, tokens that end an answer do not, where there is no constraint.
    `buffered`: nobody reads before its end, so its tokens, but for the first, come when it is over: who is woken for
    each takes its time from a core that evaluates. Where it fails or is cancelled, they do not come.
    """

    prompt: tuple[TextSpan | PromptImage, ...]
    sampling: Sampling
    max_tokens: int | None = None
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    ignore_eos: bool = False
    buffered: bool = False


@dataclass(frozen=True)
class EncodeProgress:
    """A tile is about to be encoded: the `done`-th of `total` that are not in a cache."""

    done: int
    total: int
    kind: Literal["encode_progress"] = "encode_progress"  # of events in JSON


@dataclass(frozen=True)
class PrefillDone:
    """The prompt is evaluated."""

    prompt_tokens: int
    cached_tokens: int
    images: tuple[ImageTimings, ...]
    prefill_ms: float
    queue_ms: float = 0.0  # before that, until it could run
    kind: Literal["prefill_done"] = "prefill_done"


@dataclass(frozen=True)
class TokenScore:
    """Natural logarithms of the model's own distribution, before any sampler; `top` sorted, best first."""

    logprob: float
    top: tuple[tuple[int, bytes, float], ...]


@dataclass(frozen=True)
class Token:
    """It was drawn in one step with those behind it that were `accepted`, of so many `drafted`.

    `ms`: milliseconds since the answer began, as the engine saw it; a reader may come later.
    """

    id: int
    data: bytes  # may end within a UTF-8 character
    score: TokenScore | None = None
    drafted: int = 0
    accepted: bool = False
    ms: float = field(default=0.0, compare=False)  # the same token at another time
    kind: Literal["token"] = "token"


@dataclass(frozen=True)
class Finished:
    reason: Literal["stop", "length"]
    kind: Literal["finished"] = "finished"


Event = EncodeProgress | PrefillDone | Token | Finished


@dataclass(frozen=True)
class EngineInfo:
    """What a face needs to know about the model behind an engine.

    `control_tokens` by their text; `end_tokens` are the texts of those that end an answer.
    """

    name: SystemText
    chat_template: str | None
    bos: str
    eos: str
    control_tokens: Mapping[str, int]
    end_tokens: frozenset[str]
    image_token: str | None
    has_vision: bool
    vision: str | None
    context_size: int
    fingerprint: str
    exact: bool = False
    placement: str = ""  # what is on which device, for a person


class CancellationToken:
    """Cancels one generation from another thread than the one that reads its iterator, and so may wait in it.

    The iterator then raises GenerationCancelledError. Used for one generation after another, it stops them all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._asked = False

    def stop(self) -> None:
        """Harmless more than once, and where nothing runs; what begins later is stopped as it begins."""
        with self._lock:
            self._asked = True
            if self._stop is not None:
                self._stop()

    def attach(self, stop: Callable[[], None] | None) -> None:
        """For an engine: how to stop what begins now; None when it is over. `stop` must not wait."""
        with self._lock:
            self._stop = stop
            if stop is not None and self._asked:
                stop()


@dataclass(frozen=True)
class Statistics:
    """Gauges of this moment, and totals since the engine was made, restarts included.

    `state`: "ok"; "restarting" while a child process is started again; "failing" when it crashed again and again, and
    requests are refused until it lives. `child` is its process id, where there is one.
    """

    state: Literal["ok", "restarting", "failing"] = "ok"
    parallel: int = 1
    running: int = 0
    queued: int = 0
    encoding: int = 0  # requests with tiles to encode
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the drafted ones
    restarts: int = 0
    tiles_encoded: int = 0
    tiles_from_memory: int = 0
    tiles_from_disk: int = 0
    picture_evictions: int = 0
    picture_bytes: int = 0  # gauge: what embeddings take in memory
    child: int | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a lane of the KV cache holds: for an engine of the same files and settings.

    `keys` and `ends` name its units and say at which position each ends; `state` is libllama's, `checkpoints` its parts
    after so many units. Raises ValueError where these do not go together.
    """

    keys: tuple[int | str, ...] = ()
    ends: tuple[int, ...] = ()
    state: ByteArray | None = None
    checkpoints: tuple[tuple[int, ByteArray], ...] = ()

    def __post_init__(self) -> None:
        counts = [count for count, _ in self.checkpoints]
        whole = all(type(number) is int for number in (*self.ends, *counts)) and len(self.keys) == len(self.ends)
        named = all(type(key) in (int, str) for key in self.keys)
        rising = all(a < b for numbers in (self.ends, counts) for a, b in pairwise((0, *numbers)))
        if not (whole and named and rising and max(counts, default=0) <= len(self.keys)):
            raise ValueError("what a cache is said to hold does not go together")


class Engine(Protocol):
    """Serves many generations at once; as many as `parallel` run together, others wait for their turn."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(
        self, request: Generation, cancellation: CancellationToken | None = None
    ) -> Generator[Event, None, None]:
        """Progress*, Started, Token*, Finished. Closing the iterator cancels this one generation, at any stage.

        Any number of threads may call. Nothing happens before the first `next`, which raises what is wrong:
        RequestError; EngineBusyError in a thread that would wait for itself, as it has `parallel`
        iterators that it has neither read to their end nor closed (engines in this process only). Later come
        EngineCrashedError, where native code died, and EngineClosedError. `cancellation` works from another thread.
        """
        ...

    def cancel(self) -> None:
        """Stop all running generations, from any thread: their iterators raise GenerationCancelledError."""
        ...

    def statistics(self) -> Statistics: ...

    def clear_picture_cache(self) -> None:
        """Forget all embeddings of pictures, those in files included. The KV cache is another matter.

        Raises PictureCacheError where a file cannot be removed.
        """
        ...

    def snapshot(self, prompt: Sequence[TextSpan | PromptImage]) -> Snapshot:
        """What an idle lane knows of the beginning of `prompt`, and nothing else: it forgets the rest."""
        ...

    def adopt(self, snapshot: Snapshot) -> None:
        """Put it into an idle lane. EngineBusyError where none is; SessionError where it cannot be taken."""
        ...

    def close(self) -> None:
        """Free the model. What still runs ends with EngineClosedError; closing twice is harmless."""
        ...
