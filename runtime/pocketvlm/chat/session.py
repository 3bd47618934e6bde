"""A conversation in a file: its messages, their pictures, and what the KV cache knows of them.

The file is a line that says what it is, the SHA-256 of all that follows, the length of a JSON object (uint64,
little-endian), that object, and the binary parts whose sizes it lists: the states of the cache, the pictures.
Nothing of it is used before the hash was right. That proves it whole, not who wrote it.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pocketvlm.engine.interface import EngineInfo, Snapshot
from pocketvlm.engine.process import protocol
from pocketvlm.errors import SessionError
from pocketvlm.messages import ImagePart, ImageURLPart, Message
from pocketvlm.native.build import version
from pocketvlm.pictures.images import Picture
from pocketvlm.system.atomic import new_file

_MAGIC = b"pocketvlm session 1\n"
_HASH = 32
_LENGTH = struct.Struct("<Q")
_SHOWN = ("detail", "max_image_tokens")  # of a picture, besides its pixels


@dataclass(frozen=True)
class Session:
    """`messages` are such as requests take, their pictures as the bytes of PNG files."""

    messages: list[dict[str, Any]]
    snapshot: Snapshot


def plain(messages: Sequence[Message], pictures: Mapping[tuple[int, int], Picture]) -> list[dict[str, Any]]:
    """Messages as a session holds them. `pictures`: what was read for the j-th part of the i-th message.

    Of a picture only what the model was shown is kept, its pixels: no name, no place, no camera.
    """
    found = []
    for i, message in enumerate(messages):
        told = message.model_dump(exclude_none=True, exclude={"content"})
        content: Any = message.content
        if isinstance(content, tuple):
            content = [_plain(part, pictures.get((i, j))) for j, part in enumerate(content)]
        found.append(told | ({} if content is None else {"content": content}))
    return found


def _plain(part: Any, picture: Picture | None) -> dict[str, Any]:
    if picture is None:
        told: dict[str, Any] = part.model_dump(exclude_none=True)
        return told
    from PIL import Image

    assert isinstance(part, ImagePart | ImageURLPart)
    given = part.image_url if isinstance(part, ImageURLPart) else part
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    kept = given.model_dump(include={*_SHOWN}, exclude_none=True)
    return {"type": "image", "image": file.getvalue(), **kept}


def write(path: Path, session: Session, info: EngineInfo) -> None:
    """Private to its owner, and there only when it is whole. SessionError where it cannot be written."""
    cache, states = protocol.encode_snapshot(session.snapshot)
    pictures: list[bytes] = []

    def outside(value: object) -> int:
        if not isinstance(value, bytes):
            raise TypeError(f"{type(value).__name__} in a message")
        pictures.append(value)
        return len(pictures) - 1

    messages = json.dumps(session.messages, default=outside)
    told = {
        "made for": _made_for(info),
        "messages": json.loads(messages),
        "cache": cache,
        "pictures": [len(picture) for picture in pictures],
    }
    text = json.dumps(told, separators=(",", ":")).encode("ascii")
    pieces: list[Any] = [_LENGTH.pack(len(text)), text, *states, *pictures]
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    try:
        with new_file(path, mode=0o600) as file:
            file.writelines([_MAGIC, hashed.digest(), *pieces])
    except (OSError, ValueError) as error:  # the latter for what is no name of a file
        raise SessionError(f"cannot be written: {getattr(error, 'strerror', None) or error}", path) from None


def read(path: Path, info: EngineInfo) -> Session:
    """SessionError where the file is missing, none of these, damaged, or made for another engine than `info`'s."""
    try:
        if not path.is_file():  # a pipe would block
            raise SessionError("is a directory" if path.is_dir() else "no such file", path)
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise SessionError("is no session of this version", path)
            digest, rest = file.read(_HASH), memoryview(file.read())
    except (OSError, MemoryError) as error:
        raise SessionError(f"cannot be read: {getattr(error, 'strerror', None) or 'too large'}", path) from None
    if hashlib.sha256(rest).digest() != digest:
        raise SessionError("is damaged: its content does not match its hash", path)
    try:
        return _session(rest, _made_for(info))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error) as error:
        why = error.message if isinstance(error, SessionError) else f"is no session of this version: {error!r}"
        raise SessionError(why, path) from None


def _session(rest: memoryview, made_for: Mapping[str, Any]) -> Session:
    start = _LENGTH.size
    (length,) = _LENGTH.unpack(rest[:start])
    told = json.loads(bytes(rest[start : start + length]))
    for name, here in made_for.items():
        if (there := told["made for"].get(name)) != here:
            raise SessionError(f"was saved with another {name}: {there!r}, here it is {here!r}")
    start += length
    sizes = [*told["cache"]["sizes"], *told["pictures"]]
    if min(sizes, default=0) < 0 or start + sum(sizes) != len(rest):
        raise ValueError("its parts are of other sizes")
    after = start + sum(told["cache"]["sizes"])
    pictures = [bytes(rest[at:end]) for at, end in pairwise(accumulate(told["pictures"], initial=after))]
    for message in told["messages"]:
        if isinstance(content := message.get("content"), list):
            message["content"] = [_part(part, pictures) for part in content]
    return Session(told["messages"], protocol.decode_snapshot(told["cache"], rest[start:after]))


def _part(told: dict[str, Any], pictures: Sequence[bytes]) -> dict[str, Any]:
    """A picture is one of the file's own: who made the file must not choose what is read from this machine."""
    if told["type"] == "text":
        return told
    shown = {name: told[name] for name in _SHOWN if name in told}
    return {"type": "image", "image": pictures[told["image"]], **shown}


def _made_for(info: EngineInfo) -> dict[str, Any]:
    """What must be the same for a cache to mean the same."""
    template = hashlib.sha256((info.chat_template or "").encode()).hexdigest()
    return {
        "model": info.fingerprint,
        "vision encoder": info.vision,
        "chat template": template,
        "context size": info.context_size,
        "type of cache": "float32" if info.exact else "default",
        "llama-cpp-python": version(),
    }
