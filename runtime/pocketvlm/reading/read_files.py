"""Read many documents into files, so that it can be stopped at any time and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pocketvlm.documents.document import Document, Page
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.open_document import open_document
from pocketvlm.documents.selection import PageSelection
from pocketvlm.errors import ImageError, RequestError
from pocketvlm.pictures.images import MAX_PIXELS
from pocketvlm.reading.inputs import Input
from pocketvlm.reading.progress_file import ProgressFile, stamp_of
from pocketvlm.reading.read import read_pages
from pocketvlm.reading.read_page import Format, PageReader, PageText
from pocketvlm.reading.write_document import write_document


@dataclass(frozen=True)
class Source:
    """How documents are opened. `pages` of each are read, all by default."""

    pages: PageSelection | None = None
    password: str | None = field(default=None, repr=False)
    limits: DocumentLimits | None = None
    max_pixels: int = MAX_PIXELS

    def open(self, path: Path) -> tuple[Document, list[int]]:
        """Return the document and the numbers of its pages. Raises ImageError."""
        try:
            document = open_document(path, password=self.password, limits=self.limits, max_pixels=self.max_pixels)
        except ImageError:  # some are OSErrors, too
            raise
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            return document, [page.number for page in document.pages(self.pages)]
        except BaseException:
            document.close()
            raise


@dataclass(frozen=True)
class Listener:
    """Is called as the work goes on: with the page counts of a document that begins (all, and those read before), each
    page, and what cannot be opened."""

    begins: Callable[[Input, int, int], None] = lambda *_: None
    page: Callable[[Input, PageText], None] = lambda *_: None
    fails: Callable[[ImageError], None] = lambda _: None


@dataclass
class Counts:
    """Documents and pages that are in the outputs, and those of them that could not be read."""

    documents: int = 0
    pages: int = 0
    failed_documents: int = 0
    failed_pages: int = 0
    unchanged: int = 0  # documents that were there before


class FileReader:
    """Reads `outputs`, files by the names of their outputs in `folder`, and keeps `progress`."""

    def __init__(
        self, outputs: Mapping[str, Input], folder: Path, source: Source, progress: ProgressFile, format: Format
    ) -> None:
        self._outputs = outputs
        self._folder = folder
        self._source = source
        self._progress = progress
        self._format: Format = format
        self._open: dict[Document, _Begun] = {}
        self.counts = Counts(unchanged=len(outputs) - len(self.unfinished()))

    def unfinished(self) -> dict[str, Input]:
        """Return what is to be read, also where a file has changed since, or its output has been removed."""
        return {output: file for output, file in self._outputs.items() if not self._is_finished(output, file)}

    def check_outputs(self) -> None:
        """Raise RequestError where a file would be replaced that was not written from the same document."""
        for output, file in self.unfinished().items():
            path = self._folder / output
            if path.exists() and not self._progress.wrote(output, file.path, path):
                raise RequestError(
                    f"exists already, and was not written from {file.path} or has been changed since; name another "
                    "output, or move it",
                    str(path),
                )

    def run(self, reader: PageReader, parallel: int, listener: Listener, *, alone: bool = False) -> Counts:
        """Read what is unfinished, `parallel` pages at a time. `alone`: a document that cannot be opened is an error.

        Raises ImageError then, and what `PageReader.read` raises. Pages that are read are kept.
        """
        todo = self.unfinished()
        try:
            for page, text in read_pages(self._pages(todo, listener, alone=alone), reader, parallel):
                begun = self._open[page.document]
                self._progress.add(begun.file.name, begun.stamp, text)
                begun.left.discard(text.number)
                listener.page(begun.file, text)
                if not begun.left:
                    self._finish(page.document)
        finally:
            for document in self._open:
                document.close()
        return self.counts

    def _pages(self, todo: Mapping[str, Input], listener: Listener, *, alone: bool) -> Iterator[Page]:
        """Open the documents one after the other, and yield their pages that are not read yet."""
        for output, file in todo.items():
            try:
                stamp = stamp_of(file.path)
                document, numbers = self._source.open(file.path)
            except ImageError as error:
                self._fail(error, listener, alone=alone)
                continue
            except OSError as error:  # of `stamp_of`
                self._fail(ImageError(f"{file.path}: cannot be read: {error.strerror}"), listener, alone=alone)
                continue
            known = self._progress.read(file.name, stamp)
            left = [number for number in numbers if number not in known]
            self._open[document] = _Begun(file, output, stamp, numbers, set(left))
            listener.begins(file, len(numbers), len(numbers) - len(left))
            if not left:
                self._finish(document)
            yield from (page for page in document.pages(self._source.pages) if page.number in left)

    def _fail(self, error: ImageError, listener: Listener, *, alone: bool) -> None:
        if alone:
            raise error
        self.counts.failed_documents += 1
        listener.fails(error)

    def _finish(self, document: Document) -> None:
        begun = self._open.pop(document)
        document.close()
        name, stamp = begun.file.name, begun.stamp
        pages = self._progress.pages(name, stamp, begun.numbers)
        path = self._folder / begun.output
        self._progress.begin(name, stamp, begun.output, begun.file.path)
        write_document(path, name, pages, self._format)
        self._progress.finish(name, stamp, begun.output, begun.file.path, path)
        self.counts.documents += 1
        self.counts.pages += len(begun.numbers)
        self.counts.failed_pages += self._progress.failed(name, stamp, begun.numbers)

    def _is_finished(self, output: str, file: Input) -> bool:
        try:
            stamp = stamp_of(file.path)
        except OSError:
            return False
        return (self._folder / output).exists() and self._progress.is_finished(file.name, stamp, output)


@dataclass(frozen=True)
class _Begun:
    """A document that is being read."""

    file: Input
    output: str
    stamp: str
    numbers: list[int]
    left: set[int]
