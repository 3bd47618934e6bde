"""The `Engine` protocol and the values it speaks in: generations in, events out.

`VLM` knows nothing else about how tokens are made. The dataclasses also travel to an engine's process as JSON.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal, Protocol

from pocketvlm.engine.options import EngineOptions as EngineOptions
from pocketvlm.errors import GenerationCancelledError
from pocketvlm.files.cache_type import CacheType
from pocketvlm.messages import Detail, ImageTimings
from pocketvlm.native.grammar import Constraint
from pocketvlm.native.sampler import Sampling
from pocketvlm.pictures.clip import Clip
from pocketvlm.pictures.images import Picture
from pocketvlm.system.json_types import ByteArray, SystemText
from pocketvlm.templates.prompt import TextSpan


@dataclass(frozen=True)
class PromptImage:
    """A picture in a prompt. `param` is the path of the request's field, for errors.

    `max_tokens` limits the tokens that the picture may take; None: the family's own limit. With a `clip`, it is a video
    that the model sees as one, and `picture` its first frame.
    """

    picture: Picture
    detail: Detail
    max_tokens: int | None
    param: str
    clip: Clip | None = None


@dataclass(frozen=True)
class Generation:
    """One prompt and how to continue it.

    `max_tokens`: None: up to the end of the context. `top_logprobs`: None: no log probabilities at all. With a
    `constraint`, every token follows its grammar, and the answer ends where nothing can follow; `max_tokens` may cut it
    short. `ignore_eos` continues after tokens that end an answer, and none of the first `min_tokens` tokens is one of
    these; both unless there is a constraint. `measures_certainty`: `Finished` says how likely the answer's tokens were.

    With `choices`, nothing is sampled: each is a text that could be the whole answer, and `ScoredChoices` says how
    likely it is.

    `buffered`: the caller reads nothing before the end, so all tokens but the first are emitted with it, and none where
    the generation fails or is cancelled. Waking a reader for each token would take time from a core that evaluates.
    """

    prompt: tuple[TextSpan | PromptImage, ...]
    sampling: Sampling
    max_tokens: int | None = None
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    measures_certainty: bool = False
    buffered: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodeProgress:
    """A tile is about to be encoded: number `done`, from 0, of the `total` that are in no cache."""

    done: int
    total: int
    kind: Literal["encode_progress"] = "encode_progress"  # identifies the kind of event in JSON, here and below


@dataclass(frozen=True)
class PrefillDone:
    """The prompt is evaluated. Times are in milliseconds."""

    prompt_tokens: int
    cached_tokens: int
    images: tuple[ImageTimings, ...]
    prefill_ms: float
    queue_ms: float = 0.0  # from the submission to the start
    kind: Literal["prefill_done"] = "prefill_done"


@dataclass(frozen=True)
class TokenScore:
    """Natural logarithms of probabilities in the model's own distribution, before any sampler.

    `logprob` is that of the token itself; `top` has (token id, bytes, logprob) of the likeliest tokens, best first.
    """

    logprob: float
    top: tuple[tuple[int, bytes, float], ...]


@dataclass(frozen=True)
class Token:
    """A token of the answer.

    `drafted`: tokens proposed after this one. `accepted`: this token was itself a correct proposal. `ms`: milliseconds
    from the first token to this one in the engine; the caller may read it later.
    """

    id: int
    data: bytes  # may end within a UTF-8 character
    score: TokenScore | None = None
    drafted: int = 0
    accepted: bool = False
    ms: float = field(default=0.0, compare=False)
    kind: Literal["token"] = "token"


@dataclass(frozen=True)
class ScoredChoices:
    """The natural logarithm of the probability that the answer is exactly this text, for each of the choices.

    It is that of the text's tokens one after another and then of any token that ends an answer, in the model's own
    distribution; minus infinity for a text that the vocabulary cannot write. `tokens` counts those that were evaluated
    behind the prompt, in `ms` milliseconds.
    """

    logprobs: tuple[float, ...]
    tokens: int = 0
    ms: float = field(default=0.0, compare=False)
    kind: Literal["scored_choices"] = "scored_choices"


@dataclass(frozen=True)
class Finished:
    """The answer is complete, or reached the token limit ("length").

    `certainty` is the probability of its least likely token in the model's own distribution, if it was measured.
    """

    reason: Literal["stop", "length"]
    certainty: float | None = None
    kind: Literal["finished"] = "finished"


Event = EncodeProgress | PrefillDone | Token | ScoredChoices | Finished


@dataclass(frozen=True)
class EngineInfo:
    """The properties of a loaded model that callers need.

    `control_tokens` maps texts to token ids; `end_tokens` has the texts of those that end an answer. `context_size` is
    in tokens of one request.
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
    shows_videos: bool = False  # as `Vision.shows_videos`
    placement: str = ""  # a sentence about which part runs on which device
    cache_type: CacheType = "f16"
    threads: int = 1  # at most, of the language model
    layout: str = ""  # of the weights on the CPU: a `WeightLayout`
    picture_metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what `families.find` reads
    device_bytes: int = 0  # of the GPU's memory, as predicted


class CancellationToken:
    """Cancels a generation from another thread than the one that reads its events, which may be waiting for one.

    The iterator then raises GenerationCancelledError. A token may be used for several generations in turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Stop the running generation, and every later one as it begins. Calling it again does nothing."""
        with self._lock:
            self._stopped = True
            if self._stop is not None:
                self._stop()

    def check(self) -> None:
        """Raise GenerationCancelledError if the token was stopped: for work before a generation begins."""
        if self._stopped:
            raise GenerationCancelledError("the request was cancelled")

    def attach(self, stop: Callable[[], None] | None) -> None:
        """Set how to stop the generation that begins now; None when it is over. For engines. `stop` must not wait."""
        with self._lock:
            self._stop = stop
            if stop is not None and self._stopped:
                stop()


@dataclass(frozen=True)
class Statistics:
    """Gauges of this moment, and totals since the engine was loaded, restarts included.

    `state`: "ok"; "restarting" while the engine's process is started again; "failing" after several crashes in a row,
    while requests are refused. `child` is the id of that process, if there is one.
    """

    state: Literal["ok", "restarting", "failing"] = "ok"
    parallel: int = 1
    running: int = 0
    queued: int = 0
    encoding: int = 0  # requests with tiles that are not encoded yet
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the drafted ones
    steps: int = 0  # evaluations with tokens of answers
    threads_of_steps: int = 0  # the sum of their numbers of threads
    restarts: int = 0
    tiles_encoded: int = 0
    tiles_from_memory: int = 0
    tiles_from_disk: int = 0
    picture_evictions: int = 0
    picture_bytes: int = 0  # a gauge: bytes of the embeddings in memory
    child: int | None = None

    def totals(self, ended: Statistics) -> dict[str, int]:
        """Return the totals by name, with those of engines that have `ended` added."""
        return {name: getattr(self, name) + getattr(ended, name) for name in _TOTALS}


GAUGES = ("running", "queued", "encoding", "picture_bytes")
_TOTALS = tuple(
    field.name for field in fields(Statistics) if field.name not in (*GAUGES, "state", "parallel", "restarts", "child")
)


@dataclass(frozen=True)
class TokenCount:
    """What a prompt takes of the context: `total` tokens, of which `images` are those of each picture, in order."""

    total: int
    images: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The content of one sequence of the KV cache. It fits engines with the same files and settings.

    `keys` identify the units it holds (token ids, or the keys of embedding spans), `ends` are the positions after each.
    `state` is the sequence's native state, `checkpoints` are the context checkpoints after a number of units: all uint8
    [bytes] in libllama's form. Raises ValueError where the parts contradict each other.
    """

    keys: tuple[int | str, ...] = ()
    ends: tuple[int, ...] = ()
    state: ByteArray | None = None
    checkpoints: tuple[tuple[int, ByteArray], ...] = ()

    def __post_init__(self) -> None:
        counts = [count for count, _ in self.checkpoints]
        typed = all(type(number) is int for number in (*self.ends, *counts))
        typed = typed and all(type(key) in (int, str) for key in self.keys)
        if not typed or len(self.keys) != len(self.ends) or max(counts, default=0) > len(self.keys):
            raise ValueError("the units of a snapshot do not match its positions or checkpoints")
        if not all(a < b for numbers in (self.ends, counts) for a, b in pairwise((0, *numbers))):
            raise ValueError("the positions or checkpoints of a snapshot do not ascend")


class Engine(Protocol):
    """Serves many generations at once: `parallel` of them run together, others wait for their turn."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def state(self) -> Literal["ready", "restarting", "failing", "closed"]:
        """ "failing" after several crashes in a row, as in `Statistics`. Does not wait for the engine."""
        ...

    def generate(
        self, generation: Generation, cancellation: CancellationToken | None = None
    ) -> Generator[Event, None, None]:
        """Yield EncodeProgress*, PrefillDone, Token* or ScoredChoices, Finished.

        Closing the iterator cancels it, at any stage. Any number of threads may call. Nothing happens before the first
        `next`, which raises what is wrong with the request: RequestError; or EngineBusyError where the thread would
        wait for itself, because it has `parallel` unfinished iterators (engines in this process only), or where the
        system is too busy to try a schema. Later come EngineCrashedError, where native code died, and
        EngineClosedError. `cancellation` stops the generation from another thread.
        """
        ...

    def cancel(self) -> None:
        """Stop all running generations, from any thread: their iterators raise GenerationCancelledError."""
        ...

    def statistics(self) -> Statistics: ...

    def clear_picture_cache(self) -> None:
        """Forget all embeddings of pictures, in memory and in files. The KV cache stays.

        Raises PictureCacheError where a file cannot be removed.
        """
        ...

    def count_tokens(self, prompt: Sequence[TextSpan | PromptImage]) -> TokenCount:
        """Count the tokens of a prompt, which may be longer than the context. Nothing is encoded or evaluated.

        Raises RequestError for a picture that cannot be used.
        """
        ...

    def snapshot(self, prompt: Sequence[TextSpan | PromptImage]) -> Snapshot:
        """Copy the beginning of `prompt` that a free sequence holds. The sequence drops whatever else it held."""
        ...

    def adopt(self, snapshot: Snapshot) -> None:
        """Put a snapshot into a free sequence.

        Raises EngineBusyError where no sequence is free, SessionError where the snapshot does not fit.
        """
        ...

    def close(self) -> None:
        """Free the model. Running generations end with EngineClosedError. Closing it again does nothing."""
        ...
