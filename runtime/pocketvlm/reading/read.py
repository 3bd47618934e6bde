"""Read the pages of a document, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from pocketvlm.chat.vlm import VLM
from pocketvlm.documents.document import Document, Page
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.open_document import open_document
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import GenerationCancelledError, RequestError
from pocketvlm.messages import Detail
from pocketvlm.reading.read_page import Format, PageReader, PageText, ReadOptions


def read(
    source: str | Path | bytes,
    vlm: VLM,
    *,
    pages: str | None = None,
    password: str | None = None,
    format: Format | None = None,
    prompt: str | None = None,
    preset: str | None = None,
    schema: Mapping[str, Any] | bool | None = None,
    detail: Detail | None = None,
    max_tokens: int | None = None,
    parallel: int = 1,
    limits: DocumentLimits | None = None,
) -> Iterator[PageText]:
    """Yield the pages of a document as text, in order, each as soon as it and those before it are read.

    `source` is a PDF, or a picture file of one or more pages: a path, a data: URI, or the bytes of a file. `pages`
    selects some, such as "1-3,7". `format` is "markdown" (default), "text", or "json" with a JSON `schema`.

    The `preset` says what the model is asked, and how its notation becomes Markdown; by default it is that of the
    model, known by its name, or the general one. `prompt`, `detail` and `max_tokens` replace what it says. `parallel`
    pages are read at a time; the model must be loaded with as many.

    A page that cannot be read has an `error`, and does not end the others.

        with VLM.load("my-bundle") as vlm:
            for page in read("letters.pdf", vlm):
                print(page.title, page.text)

    Raises ImageError, which names the file, where it cannot be opened or has no such page; PasswordError where it is
    encrypted; RequestError for an option that is not valid; EngineError where the engine is gone.
    """
    if parallel < 1:
        raise RequestError("must be at least 1", "parallel")
    options = ReadOptions(
        format or ("markdown" if schema is None else "json"), prompt, preset, schema, detail, max_tokens
    )
    reader = PageReader(vlm, options)
    document = open_document(source, password=password, limits=limits)
    try:
        chosen = list(document.pages(pages))
    except BaseException:
        document.close()
        raise
    return read_in_order(document, chosen, reader, parallel)


def read_in_order(document: Document, pages: list[Page], reader: PageReader, parallel: int) -> Iterator[PageText]:
    """Yield pages in order, `parallel` at a time, and close the document."""
    early: dict[int, PageText] = {}
    numbers = iter([page.number for page in pages])
    with document:
        number = next(numbers, None)
        for _, page in read_pages(pages, reader, parallel):
            early[page.number] = page
            while number in early:
                yield early.pop(number)
                number = next(numbers, None)


def read_pages(pages: Iterable[Page], reader: PageReader, parallel: int) -> Iterator[tuple[Page, PageText]]:
    """Yield pages as they are ready, `parallel` at a time. Where the caller stops, those that run are cancelled."""
    todo = iter(pages)
    stop = _Stop()
    running: set[Future[tuple[Page, PageText]]] = set()
    with ThreadPoolExecutor(parallel, "pocketvlm-read") as pool:
        try:
            while True:
                while len(running) < parallel and (page := next(todo, None)) is not None:
                    running.add(pool.submit(stop.run, reader, page))
                if not running:
                    return
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        finally:
            stop.all()


class _Stop:
    """Cancels the pages that run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[CancellationToken] = set()
        self._stopped = False

    def run(self, reader: PageReader, page: Page) -> tuple[Page, PageText]:
        cancellation = CancellationToken()
        with self._lock:
            if self._stopped:
                raise GenerationCancelledError("reading was stopped")
            self._running.add(cancellation)
        try:
            return page, reader.read(page, cancellation)
        finally:
            with self._lock:
                self._running.discard(cancellation)

    def all(self) -> None:
        with self._lock:
            self._stopped = True
            for cancellation in self._running:
                cancellation.stop()
