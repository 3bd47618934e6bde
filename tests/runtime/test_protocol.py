"""What travels between an engine's process and ours arrives as it was sent."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pocketvlm import errors
from pocketvlm.engine.interface import (
    EncodeProgress,
    EngineInfo,
    EngineOptions,
    Finished,
    Generation,
    PrefillDone,
    PromptImage,
    ScoredChoices,
    Snapshot,
    Statistics,
    Token,
    TokenCount,
    TokenScore,
)
from pocketvlm.engine.process.protocol import (
    REPLIES,
    REQUESTS,
    AdoptSnapshot,
    Cancel,
    ClearPictureCache,
    Close,
    Codec,
    CountTokens,
    Done,
    ErrorMessage,
    EventReply,
    Failed,
    Generate,
    GetProgress,
    GetStatistics,
    ProgressReply,
    Ready,
    Refused,
    Reply,
    Request,
    SnapshotReply,
    Start,
    StatisticsReply,
    TakeSnapshot,
    TokenCountReply,
)
from pocketvlm.messages import ImageTimings
from pocketvlm.native.grammar import Constraint
from pocketvlm.native.sampler import Sampling
from pocketvlm.pictures.images import Picture
from pocketvlm.templates.prompt import TextSpan

PICTURES = [
    Picture(np.arange(size, dtype=np.uint8).reshape(2, -1, 3), f"digest {size}", 1.5, 2, ("a note",))
    for size in (24, 60)
]
PROMPT = (
    TextSpan("<s>", special=True),
    PromptImage(PICTURES[0], "high", None, "messages.0.content.0"),
    TextSpan("caf\u00e9 \U0001f600\n", special=False),
    PromptImage(PICTURES[1], "auto", 64, "messages.0.content.2"),
)
GENERATION = Generation(
    PROMPT,
    Sampling(temperature=0.7, top_k=3, logit_bias={17: -100.0, 3: 1.5}, seed=2**62),
    max_tokens=5,
    top_logprobs=2,
    constraint=Constraint("start: /a/", "response_format"),
    ignore_eos=True,
    buffered=True,
)
SNAPSHOT = Snapshot(
    (1, "key", 2), (1, 9, 10), np.arange(50, dtype=np.uint8), ((1, np.zeros(0, np.uint8)), (2, np.ones(7, np.uint8)))
)
INFO = EngineInfo("\udcff", None, "<s>", "</s>", {"<s>": 1}, frozenset({"</s>", "<e>"}), "<i>", True, "v", 512, "fp")
IMAGE = ImageTimings(
    original_size=(4, 3),
    used_size=(2, 2),
    tiles=1,
    tokens=64,
    shrunk=True,
    encoded=0,
    cache="disk",
    read_ms=0.1,
    preprocess_ms=0.2,
    encode_ms=0.3,
    pages=2,
    notes=("a note",),
)
NOT_UTF8 = "/models/\udcff\u00e9"  # as Python has the path b"/models/\xff\xc3\xa9"
EVENTS = [
    EncodeProgress(1, 4),
    PrefillDone(70, 3, (IMAGE,), 12.5, 0.1),
    Token(17, bytes(range(256)), TokenScore(-math.inf, ((1, b"\xe2\x82", -0.5), (2, b"", -1e300))), 3, True, 1 / 3),
    Token(1, b""),
    ScoredChoices((-1.5, -math.inf), 3, 0.5),
    Finished("length"),
]
MESSAGES: list[Request | Reply] = [
    Start(
        Path(NOT_UTF8),
        None,
        Path("/e.onnx"),
        name=NOT_UTF8,
        fingerprint="fp",
        options=EngineOptions(stuck_after=math.inf, picture_cache=NOT_UTF8),
    ),
    Generate(0, GENERATION),
    Generate(2**40, Generation((), Sampling())),
    Generate(2, Generation((), Sampling(), choices=(" Yes", " \u00e9"))),
    Cancel(3),
    CountTokens(4, PROMPT),
    TakeSnapshot(4, PROMPT),
    AdoptSnapshot(5, SNAPSHOT),
    AdoptSnapshot(6, Snapshot()),
    ClearPictureCache(7),
    GetStatistics(8),
    GetProgress(),
    Close(),
    Ready(INFO),
    Refused(ErrorMessage("ModelFormatError", ("is broken", NOT_UTF8))),
    *(EventReply(number, event) for number, event in enumerate(EVENTS)),
    Failed(1, ErrorMessage("EngineError", ("why",))),
    Done(2),
    TokenCountReply(3, TokenCount(70, (60, 4))),
    SnapshotReply(3, SNAPSHOT),
    StatisticsReply(4, Statistics(state="failing", running=2, child=5)),
    ProgressReply((None, 7)),
]


def codec(message: Request | Reply) -> Codec[Any]:
    return REQUESTS if isinstance(message, Request) else REPLIES


def frame(message: Request | Reply) -> bytes:
    return b"".join(codec(message).pack(message))


def values(value: Any) -> Iterator[Any]:
    """The leaves of a message, with their types; arrays as their shape and bytes."""
    yield type(value)
    if isinstance(value, np.ndarray):
        yield from (value.shape, value.tobytes())
    elif is_dataclass(value):
        for field in fields(value):
            yield from values(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from values(item)
    else:
        yield value


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Request | Reply) -> None:
    stream = io.BytesIO(frame(message) * 2)
    for _ in range(2):
        assert [*values(codec(message).read(stream))] == [*values(message)]
    assert codec(message).read(stream) is None


def test_every_message_was_tried() -> None:
    assert {type(message) for message in MESSAGES} == {*get_args(Request), *get_args(Reply)}


@pytest.mark.parametrize("message", [Generate(0, GENERATION), EventReply(1, EVENTS[2])])
def test_a_frame_that_is_cut_ends_the_stream(message: Request | Reply) -> None:
    data = frame(message)
    for length in {0, 1, 11, 12, 13, len(data) // 2, len(data) - 1}:
        assert codec(message).read(io.BytesIO(data[:length])) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kind":"unknown"}',
        b'{"kind":"cancel"}',
        b'{"kind":"cancel","id":"secret"}',
        b'{"kind":"adopt_snapshot","id":1,"snapshot":{"keys":[1],"ends":[1],"state":[0,4],"checkpoints":[]}}',
        b'{"kind":"adopt_snapshot","id":1,"snapshot":{"keys":[1],"ends":[1],"state":[-1,1],"checkpoints":[]}}',
        b'{"kind":"adopt_snapshot","id":1,"snapshot":{"keys":[1],"ends":[],"state":[0,3],"checkpoints":[]}}',
    ],
)
def test_a_frame_that_holds_no_message(text: bytes) -> None:
    with pytest.raises(ValueError) as caught:  # of pydantic's own class
        REQUESTS.read(io.BytesIO(struct.pack("<IQ", len(text), 3) + text + bytes(3)))
    assert "secret" not in str(caught.value)  # it is logged


def test_errors_are_raised_as_they_were() -> None:
    raised = [
        errors.ContextLengthError("too long", "messages"),
        errors.UnsupportedError("cannot be held to", None),
        errors.ModelFormatError("is broken", Path(NOT_UTF8)),
        errors.EngineBusyError("all sequences are in use"),
        errors.GenerationCancelledError("cancelled"),
    ]
    for error in raised:
        reply = REPLIES.read(io.BytesIO(frame(Failed(1, ErrorMessage.of(error)))))
        assert isinstance(reply, Failed)
        exception = reply.error.exception()
        assert type(exception) is type(error)
        assert (str(exception), vars(exception)) == (str(error), vars(error))
    other = ErrorMessage.of(KeyError("x")).exception()
    assert type(other) is errors.EngineError and "KeyError('x')" in str(other)
    assert type(ErrorMessage("SystemExit", ("no class of ours",)).exception()) is errors.EngineError
