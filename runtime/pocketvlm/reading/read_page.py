"""Ask a model for the text of one page; a page that makes it repeat itself is asked for once more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pocketvlm.chat.vlm import VLM
from pocketvlm.documents.document import Document, Page
from pocketvlm.documents.expand import PageImage, page_of
from pocketvlm.documents.fit import Fit
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ContextLengthError, EngineCrashedError, ImageError, RequestError, printable, quoted
from pocketvlm.messages import ChatRequest, Detail, FilePart, ImagePart, ImageURLPart
from pocketvlm.pictures.images import Picture, picture_of_size
from pocketvlm.reading.notation.markup import plain_text
from pocketvlm.reading.preset import Preset
from pocketvlm.reading.presets import preset_for
from pocketvlm.reading.repetition import RepetitionGuard

Format = Literal["markdown", "text", "json"]
_PENALTY = {"repeat_penalty": 1.1, "frequency_penalty": 0.1}  # of the second try; of the last 64 tokens


@dataclass(frozen=True)
class PageText:
    """A page that was read.

    `number` counts from 1; `label` is such as "page 3 of 12". `text` is Markdown, plain text, or JSON where a schema
    was given. A page that could not be read has an `error`, a sentence, and no text. `notes` are sentences about what
    was read otherwise than one may expect, such as that the model repeated itself and its answer was cut.
    """

    number: int
    label: str
    text: str
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def title(self) -> str:
        """What the page is called alone, such as "Page 3", or the time of a frame."""
        name = self.label.partition(" of ")[0]
        return name[:1].upper() + name[1:]


@dataclass(frozen=True)
class ReadOptions:
    """How pages are read. None: as the preset of the model says. Raises RequestError, whose `param` names the field."""

    format: Format = "markdown"
    prompt: str | None = None
    preset: str | None = None
    schema: Mapping[str, Any] | bool | None = None
    detail: Detail | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise RequestError(f"must be {', '.join(get_args(Format))}, not {quoted(self.format)}", "format")
        if (self.schema is not None) != (self.format == "json"):
            raise RequestError("goes with a schema" if self.schema is None else "needs the format json", "format")


class PageReader:
    """Reads pages with a model, from several threads. Raises RequestError for an option that is not valid."""

    def __init__(self, vlm: VLM, options: ReadOptions) -> None:
        self._vlm = vlm
        self._options = options
        self._preset = preset_for(vlm.info, options.preset)
        self._request("a page", {})  # what is wrong with the options is wrong with every page

    @property
    def preset(self) -> Preset:
        return self._preset

    def read(self, page: Page, cancellation: CancellationToken) -> PageText:
        """Return the text of a page, or the page with the error that it caused.

        Raises GenerationCancelledError where it was stopped, RequestError for what is wrong with every page, such as
        the schema, and EngineError where the engine is gone.
        """
        try:
            return self._read(page, cancellation)
        except EngineCrashedError as error:
            if self._vlm.statistics().state == "failing":
                raise
            reason = str(error)
        except (ImageError, ContextLengthError) as error:
            reason = error.message
        except (_IncompleteError, OSError) as error:
            reason = str(error)
        return PageText(page.number, page.label, "", error=reason)

    def _read(self, page: Page, cancellation: CancellationToken) -> PageText:
        answer = self._answer(page, {}, cancellation)
        notes = answer.notes
        if answer.repeats:
            again = self._answer(page, _PENALTY, cancellation)
            if again.repeats:
                notes += ("the model repeated itself without end, also with a penalty; its answer is cut there",)
                answer = max(answer, again, key=lambda one: len(one.text))
            else:
                notes += ("the model repeated itself without end; the page was read again with a penalty",)
                answer = again
        if answer.cut:
            notes += ("the answer reached the limit of tokens and is cut",)
        return PageText(page.number, page.label, self._formatted(answer), notes)

    def _formatted(self, answer: _Answer) -> str:
        if self._options.format == "json":
            try:
                json.loads(answer.text)
            except ValueError:
                reason = "repeats itself" if answer.repeats else "is cut"
                raise _IncompleteError(f"the model's JSON is not complete, because it {reason}") from None
            return answer.text
        text = printable(self._preset.to_markdown(answer.text))  # a file may be shown on a terminal
        return plain_text(text) if self._options.format == "text" else text

    def _answer(self, page: Page, fields: Mapping[str, Any], cancellation: CancellationToken) -> _Answer:
        guard = RepetitionGuard()
        request = self._request(page.document.source.name, fields)
        reason = None
        shown = _OnePage(page)
        run = self._vlm.run(
            request,
            pictures=_OnePageAlone(shown),
            cancellation=cancellation,
            raw=self._preset.raw,
        )
        with closing(run) as chunks:
            for chunk in chunks:
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    guard.push(choice.delta.content or "")
                if guard.repeats:
                    break
        return _Answer(guard.text, guard.repeats, reason == "length", shown.notes)

    def _request(self, name: str, fields: Mapping[str, Any]) -> ChatRequest:
        options, preset = self._options, self._preset
        schema = options.schema if isinstance(options.schema, Mapping) else None
        max_image_tokens = None if options.detail or not self._vlm.info.picture_metadata else preset.max_image_tokens
        file = {"type": "file", "path": name, "detail": options.detail or preset.detail}
        content: list[Any] = [file if max_image_tokens is None else {**file, "max_image_tokens": max_image_tokens}]
        if question := preset.question(options.prompt, schema):
            content.append({"type": "text", "text": question})
        values: dict[str, Any] = {"max_tokens": options.max_tokens or preset.max_tokens, **preset.fields, **fields}
        if options.schema is not None:
            form = {"name": "page", "schema": options.schema, "strict": True}
            values |= {"response_format": {"type": "json_schema", "json_schema": form}, "stop": None}
        return ChatRequest.parse([{"role": "user", "content": content}], **values)


class _IncompleteError(Exception):
    """The answer is not what was asked for."""


@dataclass(frozen=True)
class _Answer:
    text: str
    repeats: bool
    cut: bool
    notes: tuple[str, ...] = field(default=())


class _OnePage(Document):
    """One page of a document, as a document of its own: the model gets the page alone, without its number."""

    def __init__(self, page: Page) -> None:
        super().__init__(page.document.source, 1, page.document.unit)
        self.notes: tuple[str, ...] = ()  # of the picture, once it was read
        self._page = page

    def read(self, number: int, fit: Fit | None = None) -> Picture:  # noqa: ARG002
        picture = self._page.read(fit)
        self.notes = picture.notes
        return picture

    def close(self) -> None:
        """Leave the file open: it belongs to the whole document."""


class _OnePageAlone:
    """The PictureSource of a request whose only file is `document`."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def with_files(self, request: ChatRequest) -> ChatRequest:
        return request

    def open_file(self, part: FilePart, param: str, limits: DocumentLimits) -> Document:  # noqa: ARG002
        return self._document

    def read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:  # noqa: ARG002
        return self._page(part).read()

    def measure(self, part: ImageURLPart | ImagePart, param: str) -> Picture:  # noqa: ARG002
        return picture_of_size(self._page(part).measure())

    def _page(self, part: ImageURLPart | ImagePart) -> PageImage:
        page = page_of(part)
        assert page is not None
        return page
