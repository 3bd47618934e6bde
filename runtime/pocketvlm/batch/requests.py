"""The requests of a batch: OpenAI's batch file, lines that name pictures, or pictures themselves.

Each request is read when it is needed. OpenAI's form (https://platform.openai.com/docs/guides/batch) has lines of
{"custom_id", "method", "url", "body"}; ours has {"image": PATH or a list of them, "pages", "prompt",
"custom_id"}, all but the first optional, and for a decision "choices", "yes_no" or "scale".
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketvlm.batch.find_pictures import find_pictures, is_requests_file
from pocketvlm.chat.decision import check_fields
from pocketvlm.decisions.choices import Choices, choices_of
from pocketvlm.decisions.request import AskedQuestion, DecisionRequest
from pocketvlm.errors import RequestError, quoted, shortened
from pocketvlm.messages import ChatRequest, ImagePart, ImageURLPart
from pocketvlm.pictures.sources import is_url, local_path

URLS = ("/v1/chat/completions", "/chat/completions")
_OPENAI_KEYS = {"custom_id", "method", "url", "body"}
DECISIONS_URLS = ("/v1/decisions", "/decisions")
CHOICES_KEYS = ("choices", "yes_no", "scale")  # of a line that asks for a decision
_OUR_KEYS = {"custom_id", "image", "pages", "prompt", *CHOICES_KEYS}


@dataclass(frozen=True)
class BatchItem:
    """One request: its place in the file, or its picture.

    `hash` covers everything that the request asks except the content of pictures.
    """

    custom_id: str
    hash: str
    line: int = 0
    offset: int = 0
    picture: Path | None = None


@dataclass(frozen=True)
class Defaults:
    """Used by requests that do not set them. `fields` are those of a ChatRequest; RequestError if one is invalid."""

    prompt: str | None = None
    system: str | None = None
    detail: str = "auto"
    fields: Mapping[str, Any] = field(default_factory=dict)
    pages: str | None = None
    password: str | None = field(default=None, repr=False)
    fps: float | None = None
    frames: int | None = None
    changes: bool | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)  # for decisions: one of CHOICES_KEYS, and its value

    def __post_init__(self) -> None:
        if self.choices:
            choices_of(**self.choices)
            check_fields(self.fields)
        texts = [text for text in (self.prompt, self.system) if text]
        ChatRequest.parse([{"role": "user", "content": text} for text in texts or [" "]], **self.fields)

    def hash(self, custom_id: str, line: str) -> str:
        """Return the hash of a request, given its line in the file."""
        parts: list[Any] = [custom_id, line, self.prompt, self.system, self.detail, dict(self.fields)]
        if (chosen := [self.pages, self.fps, self.frames]) != [None] * 3:  # requests of earlier versions have none
            parts += chosen
        if self.changes is not None:
            parts.append(self.changes)
        if self.choices:
            parts.append(dict(self.choices))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class BatchInput:
    """Requests in order, no two with the same custom_id.

    They are the lines of `source`, or else pictures. `passed_over` counts files that are not, by ending.
    """

    source: Path | None
    items: tuple[BatchItem, ...]
    defaults: Defaults
    passed_over: Mapping[str, int] = field(default_factory=Counter)

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of each request by its custom_id, in order."""
        return {item.custom_id: item.hash for item in self.items}

    def body(self, item: BatchItem) -> dict[str, Any]:
        """Return the body of a chat request, not validated yet.

        With "decide", it asks for a decision between these choices; {"questions_of": BODY} has a body of
        `DecisionRequest` instead. Raises RequestError where the line is not a request.
        """
        if item.picture is not None:
            return self._body([str(item.picture)], self.defaults.prompt, self.defaults.pages)
        assert self.source is not None, "only lines have no picture"
        with self.source.open("rb") as file:
            file.seek(item.offset)
            line = _object(file.readline())
        custom_id = line.get("custom_id")
        if isinstance(custom_id, bool) or not isinstance(custom_id, str | int | float | None):
            raise RequestError("must be a string", "custom_id")
        if "body" in line or "method" in line:
            return self._openai(line)
        if unknown := sorted(set(line) - _OUR_KEYS):
            raise RequestError(f"unknown key in a line; use {', '.join(sorted(_OUR_KEYS | _OPENAI_KEYS))}", unknown[0])
        images = line.get("image", [])
        names = [images] if isinstance(images, str) else images
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise RequestError("must be a path or a list of paths", "image")
        prompt = line.get("prompt", self.defaults.prompt)
        if prompt is not None and not isinstance(prompt, str):
            raise RequestError("must be a string", "prompt")
        pages = line.get("pages", self.defaults.pages)
        body = self._body([self._resolve(name) for name in names], prompt, pages)
        own = {key: line[key] for key in CHOICES_KEYS if line.get(key) not in (None, False)}
        return {**body, "decide": own} if own else body

    @property
    def kind(self) -> str:
        """What a custom_id is: the name of a file, or what a line says."""
        return "custom_id" if self.source else "file"

    def pictures(self) -> dict[str, Path]:
        """Return the file of each request that is about one local file."""
        files = {item.custom_id: self.files(item) for item in self.items}
        return {custom_id: paths[0] for custom_id, paths in files.items() if len(paths) == 1}

    def files(self, item: BatchItem) -> list[Path]:
        """Return the local files that a request names, in order; none where it is not a valid request."""
        if item.picture is not None:
            return [item.picture]
        try:
            return local_files(AskedItem.parse(self.body(item)).requests[0])
        except (RequestError, OSError):
            return []

    def _resolve(self, name: str) -> str:
        """Return a path relative to the folder of the file; URLs stay as they are."""
        return name if is_url(name) or self.source is None else str(self.source.parent / name)

    def _body(self, pictures: list[str], prompt: str | None, pages: Any) -> dict[str, Any]:
        if not prompt:
            raise RequestError("is missing; give it in the line or with --prompt", "prompt")
        given = self.defaults
        chosen = {"pages": pages, "fps": given.fps, "frames": given.frames, "changes": given.changes}
        values = {"detail": given.detail, "password": given.password, **chosen}
        options = {name: value for name, value in values.items() if value is not None}
        kind = "file" if options.keys() & chosen.keys() else "image"
        parts: list[dict[str, Any]] = [
            {"type": kind, "url" if is_url(name) else "path": name, **options} for name in pictures
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        if self.defaults.system:
            messages.insert(0, {"role": "system", "content": self.defaults.system})
        body = {**self.defaults.fields, "messages": messages}
        return {**body, "decide": dict(self.defaults.choices)} if self.defaults.choices else body

    def _openai(self, line: dict[str, Any]) -> dict[str, Any]:
        if line.get("method", "POST") != "POST":
            raise RequestError("must be POST", "method")
        url, body = line.get("url", URLS[0]), line.get("body")
        if url not in (*URLS, *DECISIONS_URLS):
            raise RequestError(f"{quoted(url)} is not supported; use {URLS[0]} or {DECISIONS_URLS[0]}", "url")
        if not isinstance(body, dict):
            raise RequestError("must be an object", "body")
        if url in DECISIONS_URLS:
            return {"questions_of": body}
        return {**self.defaults.fields, **body, "stream": None, "stream_options": None}


@dataclass(frozen=True)
class AskedItem:
    """A request of a batch: one to answer, or the requests of decisions, with the choices of each.

    `decisions` is the request in OpenAI's form, if it is one.
    """

    requests: tuple[ChatRequest, ...]
    choices: tuple[Choices, ...] = ()
    decisions: tuple[AskedQuestion, ...] = ()

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> AskedItem:
        """Validate what `BatchInput.body` returns. Raises RequestError with the path of the wrong field."""
        if "questions_of" in body:
            asked = tuple(DecisionRequest.parse_object(body["questions_of"]).asked())
            requests = tuple(ChatRequest.parse_object(question.body) for question in asked)
            return cls(requests, tuple(question.choices for question in asked), asked)
        if "decide" not in body:
            return cls((ChatRequest.parse_object(body),))
        chat = {name: value for name, value in body.items() if name != "decide"}
        check_fields(chat)
        return cls((ChatRequest.parse_object(chat),), (choices_of(**body["decide"]),))


def local_files(request: ChatRequest) -> list[Path]:
    """Return the local files that a request names, in order."""
    contents = [message.content for message in request.messages if isinstance(message.content, tuple)]
    parts = [part for content in contents for part in content if isinstance(part, ImagePart | ImageURLPart)]
    return [path for part in parts if (path := local_path(part)) is not None]


def read_batch(sources: Sequence[Path], defaults: Defaults, *, outputs: Sequence[Path] = ()) -> BatchInput:
    """Read the requests of a file, or of pictures: folders, files and patterns. `outputs` are not among the pictures.

    Raises RequestError where there are none, two share a custom_id, or an output is one of the sources.
    """
    for source in sources:
        if any(_is_same(source, output) for output in outputs):
            raise RequestError("is a source, and answers would be written into it; use another -o", str(source))
    if len(sources) == 1 and is_requests_file(sources[0]):
        [source] = sources
        if source.exists() and not source.is_file():
            raise RequestError("is not a regular file, which is needed to read its lines again", str(source))
        items = _lines(source, defaults)
        if not items:
            raise RequestError("contains no requests", str(source))
        return BatchInput(source, tuple(items), defaults)
    pictures, passed_over = find_pictures(sources, outputs)
    if not defaults.prompt:
        raise RequestError("is needed for pictures", "--prompt")
    if not pictures:
        raise RequestError("contains no pictures", ", ".join(map(str, sources)))
    items = [BatchItem(name, defaults.hash(name, ""), picture=path) for name, path in pictures.items()]
    return BatchInput(None, tuple(items), defaults, passed_over)


def _is_same(source: Path, output: Path) -> bool:
    try:
        return source.samefile(output)
    except OSError:  # one of them does not exist
        return False


def _lines(source: Path, defaults: Defaults) -> list[BatchItem]:
    items: dict[str, BatchItem] = {}
    offset, usable = 0, False
    try:
        with source.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    custom_id = _custom_id_of(line)
                    usable = usable or custom_id is not None
                    name = custom_id or f"line-{number}"
                    item = BatchItem(name, defaults.hash(name, line.strip().decode("latin-1")), number, offset)
                    if item.custom_id in items:
                        first = items[item.custom_id].line
                        raise RequestError(
                            f"lines {first} and {number} have the same custom_id, {quoted(item.custom_id)}", str(source)
                        )
                    items[item.custom_id] = item
                offset += len(line)
    except OSError as error:
        raise RequestError(f"cannot be read: {error.strerror}", str(source)) from None
    if items and not usable:
        raise RequestError("has no line that is a JSON object; use such a file, or a folder of pictures", str(source))
    return list(items.values())


def _custom_id_of(line: bytes) -> str | None:
    """Return a line's custom_id, "" where it has no usable one, None where the line is broken.

    A number counts as its text, as it is written in the line.
    """
    try:
        custom_id = _object(line, numbers_as_text=True).get("custom_id")
    except RequestError:
        return None
    return custom_id if isinstance(custom_id, str) else ""


def _object(line: bytes, *, numbers_as_text: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_int=str, parse_float=str) if numbers_as_text else json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the line is not JSON: {shortened(error)}") from None
    if not isinstance(value, dict):
        raise RequestError("the line is not a JSON object")
    return value
