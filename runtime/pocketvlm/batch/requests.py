"""What is asked: OpenAI's batch file, lines that name pictures, or a folder of pictures. Read as they are needed.

OpenAI's form: https://platform.openai.com/docs/guides/batch. A line of it is {"custom_id", "method", "url", "body"};
ours is {"image": PATH or a list of them, "prompt", "custom_id"}, the last two optional.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatRequest

URLS = ("/v1/chat/completions", "/chat/completions")
SUFFIXES = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff .avif .heic .heif".split())
_OPENAI = {"custom_id", "method", "url", "body"}
_OURS = {"custom_id", "image", "prompt"}


@dataclass(frozen=True)
class BatchItem:
    """One request: where it stands in the file, or the picture that it is about.

    `mark` is a hash of all that is asked, but for the pictures themselves: another question has another.
    """

    custom_id: str
    mark: str
    line: int = 0
    offset: int = 0
    picture: Path | None = None


@dataclass(frozen=True)
class Defaults:
    """For requests that do not say so themselves. `fields` are those of a ChatRequest, else RequestError."""

    prompt: str | None = None
    system: str | None = None
    detail: str = "auto"
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = [text for text in (self.prompt, self.system) if text]
        ChatRequest.parse([{"role": "user", "content": text} for text in texts or [" "]], **self.fields)

    def mark(self, custom_id: str, asked: str) -> str:
        told = [custom_id, asked, self.prompt, self.system, self.detail, dict(self.fields)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class BatchInput:
    """The requests of `source` in order, no two with the same custom_id."""

    source: Path
    items: tuple[BatchItem, ...]
    defaults: Defaults

    @property
    def marks(self) -> dict[str, str]:
        """Of each custom_id, in order."""
        return {item.custom_id: item.mark for item in self.items}

    def body(self, item: BatchItem) -> dict[str, Any]:
        """The body of a chat request, not validated yet. RequestError where the line is no request."""
        if item.picture is not None:
            return self._about([str(item.picture)], self.defaults.prompt)
        with self.source.open("rb") as file:
            file.seek(item.offset)
            line = _object(file.readline())
        if "body" in line or "method" in line:
            return self._openai(line)
        if unknown := sorted(set(line) - _OURS):
            raise RequestError(f"is not known in a line; known: {', '.join(sorted(_OURS | _OPENAI))}", unknown[0])
        images = line.get("image", [])
        named = [images] if isinstance(images, str) else images
        if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
            raise RequestError("must be a path or a list of paths", "image")
        prompt = line.get("prompt", self.defaults.prompt)
        if prompt is not None and not isinstance(prompt, str):
            raise RequestError("must be a string", "prompt")
        return self._about([self._beside(name) for name in named], prompt)

    def _beside(self, name: str) -> str:
        """Paths are meant from where the file lies; data: URIs stay."""
        return name if ":" in name else str(self.source.parent / name)

    def _about(self, pictures: list[str], prompt: str | None) -> dict[str, Any]:
        if not prompt:
            raise RequestError("is missing, in the line and on the command line", "prompt")
        parts: list[dict[str, Any]] = [
            {"type": "image", "url" if ":" in name else "path": name, "detail": self.defaults.detail}
            for name in pictures
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        if self.defaults.system:
            messages.insert(0, {"role": "system", "content": self.defaults.system})
        return {**self.defaults.fields, "messages": messages}

    def _openai(self, line: dict[str, Any]) -> dict[str, Any]:
        if line.get("method", "POST") != "POST":
            raise RequestError("must be POST", "method")
        if line.get("url", URLS[0]) not in URLS:
            raise RequestError(f"{line['url']!r} is not served; {URLS[0]} is", "url")
        body = line.get("body")
        if not isinstance(body, dict):
            raise RequestError("must be an object", "body")
        return {**self.defaults.fields, **body, "stream": None, "stream_options": None}


def read_batch(source: Path, defaults: Defaults) -> BatchInput:
    """Find the requests. RequestError where there are none, or two have one custom_id."""
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        names = [path.relative_to(source).as_posix() for path in found]
        marked = zip(names, found, strict=True)
        items = [BatchItem(name, defaults.mark(name, ""), picture=path) for name, path in marked]
        if not defaults.prompt:
            raise RequestError("is needed for a folder of pictures", "--prompt")
    else:
        if source.exists() and not source.is_file():
            raise RequestError("is no regular file: its lines are read again as they are needed", str(source))
        items = _lines(source, defaults)
    if not items:
        raise RequestError("holds no pictures" if source.is_dir() else "holds no requests", str(source))
    return BatchInput(source, tuple(items), defaults)


def _lines(source: Path, defaults: Defaults) -> list[BatchItem]:
    items: dict[str, BatchItem] = {}
    offset, usable = 0, False
    try:
        with source.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    known = _name_of(line)
                    usable = usable or known is not None
                    name = known or f"line-{number}"
                    item = BatchItem(name, defaults.mark(name, line.strip().decode("latin-1")), number, offset)
                    if item.custom_id in items:
                        first = items[item.custom_id].line
                        raise RequestError(
                            f"lines {first} and {number} have the same custom_id, {item.custom_id!r}", str(source)
                        )
                    items[item.custom_id] = item
                offset += len(line)
    except OSError as error:
        raise RequestError(f"cannot be read: {error.strerror}", str(source)) from None
    if items and not usable:
        raise RequestError("holds no line that is a JSON object; a folder of pictures would do, too", str(source))
    return list(items.values())


def _name_of(line: bytes) -> str | None:
    """ "" where it names itself in no usable way, None where it is broken: such lines are called by their number."""
    try:
        found = _object(line).get("custom_id")
    except RequestError:
        return None
    return found if isinstance(found, str) else ""


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the line is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError("the line is not a JSON object")
    return found
