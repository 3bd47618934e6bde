"""The state of a conversation: its messages, the pictures of the next question, and its settings. It prints nothing."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.picture_arguments import has_pages
from pocketvlm.cli.run_notes import RunNotes
from pocketvlm.errors import RequestError
from pocketvlm.pictures.sources import is_url

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.documents.document import Document, Page
    from pocketvlm.messages import ChatCompletionChunk
    from pocketvlm.pictures.images import Picture

# Fields of a request and of a picture's part that /set changes.
FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "stop",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "reasoning_effort",
)
PICTURE_OPTIONS = ("detail", "pages", "fps", "frames", "changes")
_FILE_OPTIONS = {"pages", "fps", "frames", "changes"}
_TEMPERATURE_OF_RETRIES = 0.7  # without one, the same question would get the same answer

Message = dict[str, Any]


@dataclass(frozen=True)
class Attached:
    """A picture or file of the next question: its number in the conversation, a line about it, and its first page."""

    number: int
    description: str
    picture: Picture
    detail: Any


class Conversation:
    """`messages` are those so far, as a request has them. `use` replaces `vlm` between two questions."""

    def __init__(
        self,
        vlm: VLM,
        system: str | None = None,
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """`options` are those of each picture, `fields` those of each request; None is the default of each."""
        self.use(vlm, LoadOptions())
        self.fields = fields
        self.options = dict(options or {})
        self._system = system
        self.reset()

    def use(self, vlm: VLM, options: LoadOptions) -> None:
        """Go on with a model that was loaded with these options."""
        self.vlm = vlm
        self.max_image_tokens = options.max_image_tokens
        self.max_pixels = options.max_pixels
        self._run_notes: RunNotes | None = None

    @property
    def run_notes(self) -> RunNotes:
        """What is said about this model and how it sees, each once."""
        self._run_notes = self._run_notes or RunNotes(self.vlm)
        return self._run_notes

    def reset(self) -> None:
        self.messages: list[Message] = []
        self.pending: list[dict[str, Any]] = []  # parts of the next question
        self.seen = 0  # pages and pictures in `messages`
        self._seen_before = 0  # without those of the last question
        self._last_asked: Any = None  # what decides the last answer, if that is complete
        self.system = self._system

    # ---- the system message

    @property
    def system(self) -> str | None:
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest
        self._system = text

    # ---- pictures

    def attach(self, source: str | bytes) -> Attached:
        """Check a picture or the first page of a file, and put it before the next question.

        Raises ImageError, RequestError.
        """
        from pocketvlm.documents.limits import DocumentLimits
        from pocketvlm.documents.open_document import open_part
        from pocketvlm.messages import FilePart
        from pocketvlm.messages.field_errors import validated

        part = self.part(source)
        file = validated(FilePart, {**part, "type": "file"})
        with open_part(file, "picture", DocumentLimits(), self.max_pixels) as document:
            pages = [*document.pages(file.pages)]
            first = pages[0].read()
            facts = _facts(document, pages, first.size, whole=part["type"] == "file")
        self.pending.append(part)
        return Attached(self.count_pictures(), f"{name_of(source)}, {facts}", first, file.detail)

    def part(self, source: str | bytes) -> dict[str, Any]:
        """Return a part of a message that shows a picture."""
        options = {name: value for name, value in self.options.items() if value is not None}
        key = "image" if isinstance(source, bytes) else "url" if is_url(source) else "path"
        shows_several = options.keys() & _FILE_OPTIONS or has_pages(source)
        return {"type": "file" if shows_several else "image", key: source, **options}

    def close(self) -> None:
        """Free the model."""
        self.vlm.close()

    def count_pictures(self) -> int:
        """Return how many pictures and files the conversation has, with those of the next question."""
        return len(self.pending) + sum(map(_has_picture, parts_of(self.messages)))

    # ---- questions and answers

    def ask(self, question: str, *sources: str | bytes) -> list[Message]:
        """Return the messages of a request: all so far, then the question after its pictures."""
        parts = [*self.pending, *map(self.part, sources)]
        return [*self.messages, {"role": "user", "content": [*parts, {"type": "text", "text": question}]}]

    def stream(self, messages: list[Message], **keywords: Any) -> Generator[ChatCompletionChunk, None, None]:
        return self.vlm.stream(messages, **{**self.fields, **keywords})

    def add(
        self, messages: list[Message], answer: str, *, before: int, seen: int | None = None, complete: bool = True
    ) -> None:
        """Keep the messages of a request and its answer.

        `seen` counts the pictures and pages of the request, if that is known, and `before` those without its question.
        """
        asked = [*parts_of(messages[-1:])]
        self._seen_before, self.seen = before, before + sum(map(_has_picture, asked)) if seen is None else seen
        self.pending = [part for part in self.pending if not any(part is other for other in asked)]
        self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]
        self._last_asked = self._asked(messages) if complete else None

    def last_question(self) -> tuple[list[Message], dict[str, Any], int]:
        """Return the messages up to the last question, fields that make another answer likely, and `seen` before it.

        Raises RequestError where there is no question yet.
        """
        asked = next((n for n in range(len(self.messages), 0, -1) if self.messages[n - 1]["role"] == "user"), 0)
        if not asked:
            raise RequestError("there is no question yet")
        messages = self.messages[:asked]
        fields: dict[str, Any] = {}
        if not self.fields.get("temperature") and self._asked(messages) == self._last_asked:
            fields = {"temperature": _TEMPERATURE_OF_RETRIES, "seed": None}
        return messages, fields, self._seen_before

    @property
    def last_answer(self) -> str:
        """The last answer as the model wrote it; empty where there is none."""
        return next((str(m["content"]) for m in reversed(self.messages) if m["role"] == "assistant"), "")

    def _asked(self, messages: list[Message]) -> Any:
        return [*messages], dict(self.fields), self.vlm.info.fingerprint

    # ---- settings

    def set(self, name: str, text: str) -> None:
        """Change a setting; "default" resets it. Raises RequestError for an unknown name or a wrong value."""
        from pocketvlm.messages import ChatRequest, FilePart
        from pocketvlm.messages.field_errors import validated
        from pocketvlm.system.suggestions import did_you_mean

        value = None if text == "default" else _value(text)
        if name in FIELDS:
            validated(ChatRequest, {"messages": [{"role": "user", "content": "x"}], name: value})
            self.fields[name] = value
        elif name in PICTURE_OPTIONS:
            if value is not None:
                validated(FilePart, {"type": "file", "path": "x", name: value})
            self.options[name] = value
        else:
            known = [*FIELDS, *PICTURE_OPTIONS]
            hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
            raise RequestError(f"there is no setting {name}{hint}", "/set")

    def settings(self) -> dict[str, Any]:
        """Return all that `set` knows; None is the default."""
        return {name: self.fields.get(name) for name in FIELDS} | {n: self.options.get(n) for n in PICTURE_OPTIONS}

    # ---- files

    def save(self, path: str) -> None:
        self.vlm.save(path, self.messages, **self.fields)

    def load(self, path: str) -> None:
        self.go_on_with(self.vlm.restore(path))

    def go_on_with(self, messages: list[Message], seen: int | None = None) -> None:
        """Replace the messages. `seen` counts their pictures and pages, if it is known."""
        self.reset()
        if password := self.options.get("password"):  # is kept in no file
            for part in parts_of(messages):
                if "path" in part:
                    part["password"] = password
        self.messages = messages
        self.seen = self._seen_before = self.count_pictures() if seen is None else seen


def _facts(document: Document, pages: list[Page], size: tuple[int, int], *, whole: bool) -> str:
    """Return what a person wants to know of a file. `whole`: all `pages` are shown, even if it is a picture."""
    from pocketvlm.documents.stills import StillsDocument

    count, unit = len(document), document.unit
    if isinstance(document, StillsDocument):
        facts = "{}x{}".format(*size)
        if count > 1:
            shown = f"{len(pages)} of {count}" if whole else f"the first of {count}"
            facts += f", {shown} {unit}s" + ("" if whole else f" (for more, /set pages 1-{count} and show it again)")
        return facts
    pages_shown = "" if len(pages) == count else f"{len(pages)} of "
    return f"{pages_shown}{count} {unit}" + ("s" if count > 1 else "")


def parts_of(messages: list[Message]) -> Iterator[Any]:
    """Yield the parts of all messages."""
    for message in messages:
        if isinstance(content := message.get("content"), list | tuple):
            yield from content


def name_of(source: str | bytes) -> str:
    """Return a short name of a picture for a line."""
    if isinstance(source, bytes):
        return "standard input"
    return "a data: URI" if source.startswith("data:") else Path(source).name or source


def _has_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") != "text"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
