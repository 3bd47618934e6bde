"""Measure a loaded model: a new picture, the same picture again in three ways, a text, and an answer.

Every round changes the lowest bits of the picture at random, so that no cache has any of its tiles.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from pocketvlm.messages import Detail
from pocketvlm.system.machine import Memory, process_memory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pocketvlm.chat.vlm import VLM
    from pocketvlm.messages import Timings, Usage

STEPS = ("first", "second", "again", "moved", "read")  # of a round, in this order
_FIRST, _NEXT, _OTHER = "What is in the picture?", "What else is there?", "Describe the picture in one sentence."
_BEFORE = "Here is a picture that I took last summer, on a day when it would not stop raining."
_SHORT_ANSWER = 8  # tokens of the answer before a second turn
_WORDS = 256  # of the text whose reading is timed


@dataclass(frozen=True)
class Subject:
    """A picture to ask about: `pixels` uint8 [height, width, 3]."""

    name: str
    pixels: npt.NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest value of all rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """One picture at one `detail`. Times in milliseconds, speeds in tokens per second.

    Time to the first token: `first` for a new picture, `second` for the next question about it, `again` for another
    question about it in a new chat, `moved` where other text comes before it. `encode` is the encoder's share of
    `first`. `prefill` is the speed of reading a text, `decode` that of an answer about the picture. `threads` is the
    mean number of threads of the answer's steps: less than the report's where other programs took cores.
    """

    picture: str
    size: tuple[int, int]
    used_size: tuple[int, int]
    detail: Detail
    tiles: int
    image_tokens: int
    first: Spread
    second: Spread
    again: Spread
    moved: Spread
    encode: Spread
    prefill: Spread
    decode: Spread
    threads: Spread


@dataclass(frozen=True)
class Report:
    """All cases. `layout` is that of the weights on the CPU, `cache_type` that of the KV cache.

    `threads` is the number that the language model may use.

    `memory` is that of this process after the last round; None where the system does not report it.
    """

    model: str
    fingerprint: str
    vision: str | None
    layout: str
    cache_type: str
    threads: int
    repeat: int
    tokens: int
    cases: tuple[Case, ...]
    memory: Memory | None


@dataclass(frozen=True)
class _Measured:
    first_ms: float
    rest_ms: float  # from the first token to the end
    text: str
    timings: Timings
    usage: Usage
    threads: float  # of a step with tokens of the answer, on average


def photo(width: int, height: int) -> Subject:
    """Return a smooth picture with all colours."""
    import numpy as np

    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(12 * x * y)], -1)
    return Subject(f"{width}x{height}", np.clip(127.5 + 120 * waves, 0, 255).astype(np.uint8))


def fresh(subject: Subject) -> npt.NDArray[np.uint8]:
    """Return a copy that looks the same but is in no cache."""
    import numpy as np

    noise = np.random.default_rng().integers(0, 2, subject.pixels.shape, np.uint8)
    noise ^= subject.pixels
    return noise


def run(
    vlm: VLM,
    subjects: Sequence[Subject],
    details: Sequence[Detail] = ("auto",),
    *,
    repeat: int = 3,
    tokens: int = 64,
    step: Callable[[], None] = lambda: None,
) -> Report:
    """Run `repeat` rounds of every subject at every detail. Answers have `tokens` tokens, at least 2.

    `step` is called before each of the `len(STEPS)` steps of a round. Raises RequestError where the model takes no
    pictures, and ContextLengthError where one does not fit.
    """
    _ask(vlm, [_message("user", _image(photo(64, 64).pixels, "auto"), _FIRST)], max_tokens=2)  # warm up
    cases = tuple(
        _case(subject, detail, [_round(vlm, subject, detail, tokens, step) for _ in range(repeat)])
        for subject in subjects
        for detail in details
    )
    info = vlm.info
    return Report(
        info.name,
        info.fingerprint,
        info.vision,
        info.layout,
        info.cache_type,
        info.threads,
        repeat,
        tokens,
        cases,
        process_memory(),
    )


def _round(vlm: VLM, subject: Subject, detail: Detail, tokens: int, step: Callable[[], None]) -> dict[str, _Measured]:
    image = _image(fresh(subject), detail)
    messages = [_message("user", image, _FIRST)]
    step()
    measured = {"first": _ask(vlm, messages, max_tokens=_SHORT_ANSWER)}
    messages += [_message("assistant", measured["first"].text), _message("user", _NEXT)]
    step()
    measured["second"] = _ask(vlm, messages, max_tokens=1)
    step()
    measured["again"] = _ask(vlm, [_message("user", image, _OTHER)], max_tokens=tokens, ignore_eos=True)
    step()
    measured["moved"] = _ask(vlm, [_message("user", _BEFORE, image, _FIRST)], max_tokens=1)
    step()
    numbers = (str(Random().randrange(10)) for _ in range(min(_WORDS, vlm.info.context_size // 8)))
    measured["read"] = _ask(vlm, [_message("user", " ".join(numbers))], max_tokens=1)
    return measured


def _ask(vlm: VLM, messages: list[dict[str, Any]], **fields: Any) -> _Measured:
    before = vlm.statistics()
    began = time.perf_counter()
    first = None
    texts = []
    with closing(vlm.stream(messages, stream_options={"include_usage": True}, **fields)) as chunks:
        for chunk in chunks:
            first = first or time.perf_counter()
            texts.append(chunk.text)
    ended = time.perf_counter()
    assert first is not None and chunk.usage is not None and chunk.timings is not None
    after = vlm.statistics()
    threads = (after.threads_of_steps - before.threads_of_steps) / max(1, after.steps - before.steps)
    return _Measured(
        1000 * (first - began), 1000 * (ended - first), "".join(texts), chunk.timings, chunk.usage, threads
    )


def _message(role: str, *parts: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def _image(pixels: npt.NDArray[np.uint8], detail: Detail) -> dict[str, Any]:
    return {"type": "image", "image": pixels, "detail": detail}


def _case(subject: Subject, detail: Detail, rounds: list[dict[str, _Measured]]) -> Case:
    def spread(value: Callable[[dict[str, _Measured]], float]) -> Spread:
        values = [value(measured) for measured in rounds]
        return Spread(median(values), min(values), max(values))

    image = rounds[0]["first"].timings.images[0]
    return Case(
        picture=subject.name,
        size=image.original_size,
        used_size=image.used_size,
        detail=detail,
        tiles=image.tiles,
        image_tokens=image.tokens,
        first=spread(lambda measured: measured["first"].first_ms),
        second=spread(lambda measured: measured["second"].first_ms),
        again=spread(lambda measured: measured["again"].first_ms),
        moved=spread(lambda measured: measured["moved"].first_ms),
        encode=spread(lambda measured: sum(image.encode_ms for image in measured["first"].timings.images)),
        prefill=spread(lambda measured: _prefill_speed(measured["read"])),
        decode=spread(lambda measured: _decode_speed(measured["again"])),
        threads=spread(lambda measured: measured["again"].threads),
    )


def _prefill_speed(measured: _Measured) -> float:
    details = measured.usage.prompt_tokens_details
    return 1000 * (measured.usage.prompt_tokens - details.cached_tokens) / measured.timings.prefill_ms


def _decode_speed(measured: _Measured) -> float:
    # The first token comes with the prompt.
    return 1000 * (measured.usage.completion_tokens - 1) / measured.rest_ms


def __getattr__(name: str) -> Any:
    if name == "measure":
        warnings.warn("pocketvlm.bench.measure.measure is now pocketvlm.bench.run", DeprecationWarning, stacklevel=2)
        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
