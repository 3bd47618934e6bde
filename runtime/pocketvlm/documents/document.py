"""A file of several pictures: a document with pages, an animation or a video with frames.

Nothing is decoded before a page is read, and no page is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from types import TracebackType

from pocketvlm.documents.fit import Fit
from pocketvlm.documents.selection import PageSelection
from pocketvlm.errors import ImageError, RequestError
from pocketvlm.pictures.images import Picture
from pocketvlm.pictures.sources import Source


@dataclass(frozen=True)
class Page:
    """One picture of a document, not read yet. `number` counts from 1; `label` is for people and models."""

    document: Document
    number: int
    label: str

    @property
    def time(self) -> float | None:
        """The time of a frame in seconds from the beginning; None for pages of other files."""
        return self.document.times[self.number - 1] if self.document.times else None

    def read(self, fit: Fit | None = None) -> Picture:
        """Decode the page. Where it has no size in pixels, `fit` chooses one; None: as printed at 150 dpi.

        Raises ImageError, which names the file and the page.
        """
        return self.document.read(self.number, fit)

    def measure(self, fit: Fit | None = None) -> tuple[int, int]:
        """Return (width, height) of the picture that `read` returns, without decoding it where that is possible."""
        return self.document.measure(self.number, fit)


class Document(ABC):
    """Pictures of one file. Use it as a context manager, or call `close`. Any thread may call.

    A video or animation has `times`, in seconds from its beginning, of all its frames, and lasts `seconds`.
    """

    times: Sequence[float] = ()
    seconds: float = 0.0

    def __init__(self, source: Source, count: int, unit: str = "page") -> None:
        self.source = source
        self.unit = unit
        self.file: Document = self  # the one that views of it share
        self._count = count

    def __len__(self) -> int:
        return self._count

    def view(self, param: str) -> Document:
        """Return the same open file for another field of the request, which its errors name."""
        view = copy(self)
        view.source = replace(self.source, param=param)
        return view

    def pages(self, selection: PageSelection | str | None = None) -> Iterator[Page]:
        """Yield the selected pages, all by default.

        Raises ImageError where there is no such page, RequestError for a text that is not a selection. The iterator
        reads nothing; `Page.read` does.
        """
        if isinstance(selection, str):
            selection = PageSelection.parse(selection)
        try:
            for number in (selection or PageSelection()).numbers(len(self)):
                yield Page(self, number, self.label(number))
        except ValueError as error:
            if isinstance(error, RequestError):
                raise
            raise self.source.error(str(error), ImageError) from None

    def label(self, number: int) -> str:
        """Return what names this page among the others, such as "page 3 of 12", or the time of a frame: "0:04.5"."""
        if self.times:
            tenths = round(10 * self.times[number - 1])
            minutes, rest = divmod(tenths, 600)
            return f"{minutes}:{rest // 10:02}.{rest % 10}"
        return f"{self.unit} {number} of {len(self)}"

    @abstractmethod
    def read(self, number: int, fit: Fit | None = None) -> Picture:
        """Decode a page, as `Page.read` does."""

    def measure(self, number: int, fit: Fit | None = None) -> tuple[int, int]:
        """Return the size of a page, as `Page.measure` does."""
        return self.read(number, fit).size

    def rest(self) -> None:  # noqa: B027 - most documents have nothing to free
        """Free the memory that the next read can take again."""

    @abstractmethod
    def close(self) -> None:
        """Free the file. Closing twice is harmless."""

    def __enter__(self) -> Document:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _of_page(self, number: int) -> Source:
        return Source(f"{self.source.name}: {self.unit} {number}", self.source.param)
