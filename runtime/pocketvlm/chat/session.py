"""A conversation in a file: its messages, their pictures, and what the KV cache holds of them.

The file starts with a line that names the format, the SHA-256 of everything after it, and the length of a JSON object
(uint64, little-endian). The object follows, then the binary parts whose sizes it lists: states of the cache, pictures.
Nothing is used before the hash is checked. The hash proves that the file is complete, not who wrote it.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pocketvlm.engine.interface import EngineInfo, Snapshot
from pocketvlm.errors import SessionError, quoted
from pocketvlm.messages import ImagePart, ImageURLPart, Message
from pocketvlm.native.build import version
from pocketvlm.pictures.images import Picture
from pocketvlm.system.atomic import new_file
from pocketvlm.system.json_types import ByteArray

_MAGIC = b"pocketvlm session 1\n"
_HASH_SIZE = 32  # bytes
_LENGTH = struct.Struct("<Q")
_FORMER_CACHE_TYPES = {"default": "f16", "float32": "f32"}  # names in files of 0.1 and 0.2
_IMAGE_OPTIONS = ("detail", "max_image_tokens")


@dataclass(frozen=True)
class Session:
    """`messages` as a request has them, with each picture as the bytes of a PNG file."""

    messages: list[dict[str, Any]]
    snapshot: Snapshot


@dataclass(frozen=True)
class _SavedCache:
    """A snapshot as the JSON has it. `marks` count the units before each checkpoint.

    `sizes` are those of the states that follow the JSON, in bytes: of the whole sequence, then of each checkpoint.
    """

    keys: Sequence[int | str]
    ends: Sequence[int]
    marks: Sequence[int]
    sizes: Sequence[int]

    @classmethod
    def of(cls, snapshot: Snapshot, states: Sequence[ByteArray]) -> _SavedCache:
        marks = [count for count, _ in snapshot.checkpoints]
        return cls(snapshot.keys, snapshot.ends, marks, [len(state) for state in states])

    def snapshot(self, states: memoryview) -> Snapshot:
        ends = accumulate(self.sizes, initial=0)
        arrays = [np.frombuffer(states[start:end], np.uint8) for start, end in pairwise(ends)]
        checkpoints = tuple(zip(self.marks, arrays[1:], strict=True))
        return Snapshot(tuple(self.keys), tuple(self.ends), arrays[0] if arrays else None, checkpoints)


def plain(messages: Sequence[Message], pictures: Mapping[tuple[int, int], Picture]) -> list[dict[str, Any]]:
    """Return messages as a session holds them. `pictures[i, j]` was read for part j of message i.

    Of a picture only the pixels that the model was shown are kept: no name, no place, no camera.
    """
    plain_messages = []
    for i, message in enumerate(messages):
        fields = message.model_dump(exclude_none=True, exclude={"content"})
        content: Any = message.content
        if isinstance(content, tuple):
            content = [_plain_part(part, pictures.get((i, j))) for j, part in enumerate(content)]
        plain_messages.append(fields if content is None else {**fields, "content": content})
    return plain_messages


def _plain_part(part: Any, picture: Picture | None) -> dict[str, Any]:
    if picture is None:
        fields: dict[str, Any] = part.model_dump(exclude_none=True)
        return fields
    from PIL import Image

    assert isinstance(part, ImagePart | ImageURLPart)
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    image = part.image_url if isinstance(part, ImageURLPart) else part
    options = image.model_dump(include={*_IMAGE_OPTIONS}, exclude_none=True)
    return {"type": "image", "image": file.getvalue(), **options}


def write(path: Path, session: Session, info: EngineInfo) -> None:
    """Write a file that only its owner can read. It appears when it is complete.

    Raises SessionError where it cannot be written.
    """
    snapshot = session.snapshot
    states = [] if snapshot.state is None else [snapshot.state, *(state for _, state in snapshot.checkpoints)]
    pictures: list[bytes] = []

    def picture_number(value: object) -> int:
        if not isinstance(value, bytes):
            raise TypeError(f"{type(value).__name__} in a message")
        pictures.append(value)
        return len(pictures) - 1

    messages = json.dumps(session.messages, default=picture_number)
    header = {
        "made for": _made_for(info),
        "messages": json.loads(messages),
        "cache": asdict(_SavedCache.of(snapshot, states)),
        "pictures": [len(picture) for picture in pictures],
    }
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    parts: list[Any] = [_LENGTH.pack(len(text)), text, *states, *pictures]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        with new_file(path, mode=0o600) as file:
            file.writelines([_MAGIC, digest.digest(), *parts])
    except (OSError, ValueError) as error:  # ValueError for a path that cannot name a file
        raise SessionError(f"cannot be written: {getattr(error, 'strerror', None) or error}", path) from None


def read(path: Path, info: EngineInfo) -> Session:
    """Read a session that was written for an engine like that of `info`.

    Raises SessionError where the file is missing, damaged, not a session, or of another engine.
    """
    try:
        if not path.is_file():  # a pipe would block
            raise SessionError("is a directory" if path.is_dir() else "no such file", path)
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise SessionError("is not a session file that this version can read", path)
            digest, rest = file.read(_HASH_SIZE), memoryview(file.read())
    except (OSError, MemoryError) as error:
        raise SessionError(f"cannot be read: {getattr(error, 'strerror', None) or 'too large'}", path) from None
    if hashlib.sha256(rest).digest() != digest:
        raise SessionError("is damaged: its content does not match its hash", path)
    try:
        return _parse(rest, _made_for(info))
    except SessionError as error:
        raise SessionError(error.message, path) from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error) as error:
        raise SessionError(f"is not a session file that this version can read: {quoted(error)}", path) from None


def _parse(rest: memoryview, made_for: Mapping[str, Any]) -> Session:
    start = _LENGTH.size
    (length,) = _LENGTH.unpack(rest[:start])
    header = json.loads(bytes(rest[start : start + length]))
    for name, here in made_for.items():
        there = header["made for"].get(name)
        if name == "type of cache":
            there = _FORMER_CACHE_TYPES.get(there, there)
        if there != here:
            raise SessionError(f"was saved with another {name}: {quoted(there)}, here it is {quoted(here)}")
    start += length
    cache, picture_sizes = _SavedCache(**header["cache"]), header["pictures"]
    sizes = [*cache.sizes, *picture_sizes]
    if min(sizes, default=0) < 0 or start + sum(sizes) != len(rest):
        raise ValueError("the sizes of its parts do not add up to its size")
    states_end = start + sum(cache.sizes)
    pictures = [bytes(rest[at:end]) for at, end in pairwise(accumulate(picture_sizes, initial=states_end))]
    for message in header["messages"]:
        if isinstance(content := message.get("content"), list):
            message["content"] = [_parse_part(part, pictures) for part in content]
    return Session(header["messages"], cache.snapshot(rest[start:states_end]))


def _parse_part(part: dict[str, Any], pictures: Sequence[bytes]) -> dict[str, Any]:
    """Every picture is one of the file's own, because its author must not choose what is read from this machine."""
    if part["type"] == "text":
        return part
    options = {name: part[name] for name in _IMAGE_OPTIONS if name in part}
    return {"type": "image", "image": pictures[part["image"]], **options}


def _made_for(info: EngineInfo) -> dict[str, Any]:
    """Return what must be equal for the saved state of the cache to be valid."""
    template = hashlib.sha256((info.chat_template or "").encode()).hexdigest()
    return {
        "model": info.fingerprint,
        "vision encoder": info.vision,
        "chat template": template,
        "context size": info.context_size,
        "type of cache": info.cache_type,
        "llama-cpp-python": version(),
    }
