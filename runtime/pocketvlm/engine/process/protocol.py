"""What travels between an engine's process and ours: requests to it, replies from it. No code travels.

A message is a frame: a uint32 and a uint64, little-endian, count the bytes of a JSON object and of the arrays that
follow it; then both. pydantic encodes and decodes the messages from the types below.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Annotated, Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter

from pocketvlm import errors
from pocketvlm.engine.interface import (
    EngineInfo,
    EngineOptions,
    Event,
    Generation,
    PromptImage,
    Snapshot,
    Statistics,
    TokenCount,
)
from pocketvlm.errors import quoted
from pocketvlm.system.json_types import SystemPath, SystemText
from pocketvlm.system.limits import shortage
from pocketvlm.templates.prompt import TextSpan

T = TypeVar("T")

# --- requests


@dataclass(frozen=True)
class Start:
    """Load an engine; the first message. Paths are absolute. The reply is `Ready` or `Refused`."""

    model: SystemPath
    mmproj: SystemPath | None
    onnx: SystemPath | None
    name: SystemText
    fingerprint: str
    options: EngineOptions
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class Generate:
    """Run a generation. The replies are `EventReply` up to `Finished`, or `Failed`."""

    id: int
    generation: Generation
    kind: Literal["generate"] = "generate"


@dataclass(frozen=True)
class Cancel:
    """Stop a generation. There is no reply."""

    id: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True)
class CountTokens:
    """The reply is `TokenCountReply` or `Failed`."""

    id: int
    prompt: tuple[TextSpan | PromptImage, ...]
    kind: Literal["count_tokens"] = "count_tokens"


@dataclass(frozen=True)
class TakeSnapshot:
    """The reply is `SnapshotReply` or `Failed`."""

    id: int
    prompt: tuple[TextSpan | PromptImage, ...]
    kind: Literal["take_snapshot"] = "take_snapshot"


@dataclass(frozen=True)
class AdoptSnapshot:
    """The reply is `Done` or `Failed`."""

    id: int
    snapshot: Snapshot
    kind: Literal["adopt_snapshot"] = "adopt_snapshot"


@dataclass(frozen=True)
class ClearPictureCache:
    """The reply is `Done` or `Failed`."""

    id: int
    kind: Literal["clear_picture_cache"] = "clear_picture_cache"


@dataclass(frozen=True)
class GetStatistics:
    """The reply is `StatisticsReply`."""

    id: int
    kind: Literal["get_statistics"] = "get_statistics"


@dataclass(frozen=True)
class GetProgress:
    """The reply is `ProgressReply`."""

    kind: Literal["get_progress"] = "get_progress"


@dataclass(frozen=True)
class Close:
    """End the process."""

    kind: Literal["close"] = "close"


# Each has an `id`, which its replies have, too.
Question = Generate | CountTokens | TakeSnapshot | AdoptSnapshot | ClearPictureCache | GetStatistics
EngineRequest = Question | Cancel | GetProgress  # to a loaded engine
Request = Start | EngineRequest | Close

# --- replies


@dataclass(frozen=True)
class ErrorMessage:
    """An error of pocketvlm by the name of its class and its arguments; any other as an EngineError that quotes it."""

    name: str
    arguments: tuple[SystemText | None, ...]

    @classmethod
    def of(cls, error: BaseException) -> ErrorMessage:
        match error:
            case errors.RequestError(message=message, param=param):
                return cls(type(error).__name__, (message, param))
            case errors.FileError(message=message, path=path):
                return cls(type(error).__name__, (message, None if path is None else str(path)))
            case errors.PocketVLMError():
                return cls(type(error).__name__, (str(error),))
        if reason := shortage(error):
            return cls("SystemLimitError", (reason,))
        return cls("EngineError", (f"the engine failed: {quoted(error)}",))

    def exception(self) -> Exception:
        """Return the error, to be raised."""
        kind: Any = getattr(errors, self.name, None)
        if not (isinstance(kind, type) and issubclass(kind, errors.PocketVLMError)):
            kind = errors.EngineError
        make: Callable[..., Exception] = kind  # each class has arguments of its own
        return make(*self.arguments)


@dataclass(frozen=True)
class Ready:
    """The engine is loaded."""

    info: EngineInfo
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True)
class Refused:
    """The engine cannot be loaded. The process ends when its parent closes the pipe."""

    error: ErrorMessage
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True)
class EventReply:
    """An event of the generation `id`."""

    id: int
    event: Annotated[Event, Field(discriminator="kind")]
    kind: Literal["event"] = "event"


@dataclass(frozen=True)
class Failed:
    """The question `id` ended with an error."""

    id: int
    error: ErrorMessage
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True)
class Done:
    id: int
    kind: Literal["done"] = "done"


@dataclass(frozen=True)
class TokenCountReply:
    id: int
    count: TokenCount
    kind: Literal["token_count"] = "token_count"


@dataclass(frozen=True)
class SnapshotReply:
    id: int
    snapshot: Snapshot
    kind: Literal["snapshot"] = "snapshot"


@dataclass(frozen=True)
class StatisticsReply:
    id: int
    statistics: Statistics
    kind: Literal["statistics"] = "statistics"


@dataclass(frozen=True)
class ProgressReply:
    """The numbers of the running step and of the running background work, as `InProcessEngine.progress` has them."""

    progress: tuple[int | None, int | None]
    kind: Literal["progress"] = "progress"


Answer = EventReply | Failed | Done | TokenCountReply | SnapshotReply | StatisticsReply  # to the question with its `id`
Reply = Ready | Refused | Answer | ProgressReply

# --- frames


class Codec(Generic[T]):
    """Packs and reads the messages of one direction. `messages` is a union whose members differ in `kind`."""

    _HEAD = struct.Struct("<IQ")
    _CONFIG = ConfigDict(
        ser_json_bytes="base64",  # a token may end within a UTF-8 character
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
        hide_input_in_errors=True,  # errors are logged, prompts and answers are not
        defer_build=True,  # until the first message: it takes 0.1 s, and most programs need no process
    )

    def __init__(self, messages: Any) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(
            Annotated[messages, Field(discriminator="kind")], config=self._CONFIG
        )

    def pack(self, message: T) -> list[bytes | memoryview]:
        """Return a frame, in parts to be written one after another."""
        blobs: list[memoryview] = []
        text = self._adapter.dump_json(message, context=blobs, warnings=False)
        return [self._HEAD.pack(len(text), sum(blob.nbytes for blob in blobs)) + text, *blobs]

    def read(self, stream: IO[bytes]) -> T | None:
        """Return the next message, or None where the stream ends, even within a frame.

        Arrays of the message are views of the memory that the frame was read into. Raises ValueError for a frame that
        holds no such message, MemoryError for one that does not fit into memory.
        """
        if len(head := stream.read(self._HEAD.size)) < self._HEAD.size:
            return None
        text_size, blob_size = self._HEAD.unpack(head)
        text, blob = stream.read(text_size), stream.read(blob_size)
        if len(text) < text_size or len(blob) < blob_size:
            return None
        return self._adapter.validate_json(text, context=memoryview(blob))


REQUESTS: Codec[Request] = Codec(Request)
REPLIES: Codec[Reply] = Codec(Reply)
