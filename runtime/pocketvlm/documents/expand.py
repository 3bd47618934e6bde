"""The documents of a request: each becomes its pages, with a text before each that says which one it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

from pocketvlm.documents.document import Document, Page
from pocketvlm.documents.fit import Fit, Size
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.selection import PageSelection
from pocketvlm.errors import ImageTooLargeError
from pocketvlm.messages import ChatRequest, FilePart, ImagePart, ImageURLPart, Part, TextPart
from pocketvlm.messages.parts import VideoPart, source_path
from pocketvlm.pictures.images import Picture, packed

FileOpener = Callable[[FilePart, str, DocumentLimits], Document]  # (part, path of its field in the request, limits)
_MAX_FILES = 16  # of a request
_MAX_AWAKE = 4  # of them; each may have a process
_MAX_KEPT = 1 << 30  # bytes of the pages of a request
_UNPACKED = 4  # pages of a request; others are kept as files, a tenth of their size


@dataclass(frozen=True)
class ExpandedRequest:
    """`request` has no files of several pictures. `places[i][j]` is the place of part j of message i before that."""

    request: ChatRequest
    places: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def param(self, i: int, j: int) -> str:
        """Return the path of a part in the request as it came, for errors."""
        return f"messages.{i}.content.{self.places[i][j] if i in self.places else j}"


@dataclass(frozen=True)
class PageImage:
    """A page as the `image` of a part; it is read when the prompt is made."""

    page: Page
    fit: Fit
    _budget: _Budget
    note: str = ""  # for the user

    def read(self) -> Picture:
        """Raises ImageError, also where the request has taken too long to decode."""
        picture = self._budget.spend(self.page, self.fit)
        return replace(picture, notes=(*picture.notes, self.note)) if self.note else picture

    def measure(self) -> Size:
        """Return (width, height) of what `read` returns. Raises as it does."""
        return self._budget.measure(self.page, self.fit)


@dataclass(frozen=True)
class VideoFrames:
    """A video as the `image` of a part: its frames as parts with a PageImage, and their times."""

    frames: tuple[ImagePart, ...]
    times: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class VideoSupport:
    """Whether the model sees a video as one. If not, its frames are pictures, and `note` says why, for the user."""

    as_one: bool = False
    note: str = ""


def page_of(part: ImageURLPart | ImagePart) -> PageImage | None:
    """Return the page that a part of an expanded request stands for; None for other pictures."""
    image = part.image if isinstance(part, ImagePart) else None
    return image if isinstance(image, PageImage) else None


def frames_of(part: ImageURLPart | ImagePart) -> VideoFrames | None:
    """Return the frames of a video that a part of an expanded request stands for; None for other parts."""
    image = part.image if isinstance(part, ImagePart) else None
    return image if isinstance(image, VideoFrames) else None


@contextmanager
def expanded(
    request: ChatRequest,
    open_file: FileOpener,
    fit: Callable[[FilePart], Fit],
    limits: DocumentLimits,
    videos: VideoSupport | None = None,
) -> Iterator[ExpandedRequest]:
    """Yield the request with the pages of its files, which can be read until the end.

    `fit` says how large the pages of a part are drawn. Raises ImageError for files that cannot be opened, pages that
    are not there, and more files or pages than the limits allow; RequestError for a text that selects no pages.
    """
    budget, videos = _Budget(limits), videos or VideoSupport()
    messages, places = [], dict[int, tuple[int, ...]]()
    with ExitStack() as files:
        for i, message in enumerate(request.messages):
            content = message.content
            if isinstance(content, tuple) and any(isinstance(part, FilePart) for part in content):
                pairs: list[tuple[int, Part | VideoPart]] = []
                for j, part in enumerate(content):
                    if isinstance(part, FilePart):
                        param = f"messages.{i}.content.{j}"
                        document = budget.opened(part, param, lambda *named: files.enter_context(open_file(*named)))
                        pairs += [(j, one) for one in _pages(part, param, document, fit(part), budget, videos)]
                    else:
                        pairs.append((j, part))
                message = message.model_copy(update={"content": tuple(part for _, part in pairs)})
                places[i] = tuple(j for j, _ in pairs)
            messages.append(message)
        yield ExpandedRequest(request.model_copy(update={"messages": tuple(messages)}) if places else request, places)


def _pages(
    part: FilePart, param: str, document: Document, fit: Fit, budget: _Budget, videos: VideoSupport
) -> Iterator[Part | VideoPart]:
    selection = PageSelection.parse(part.pages, f"{param}.pages") if part.pages is not None else None
    budget.wake(document)
    left = budget.pages_left
    pages = [*islice(document.pages(selection), left + 1)]
    if len(pages) > left:
        raise document.source.error(
            f"has {len(document):,} {document.unit}s; a request may show at most {budget.limits.pages:,}; choose some, "
            'such as pages="1-10"',
            ImageTooLargeError,
        )
    budget.pages_left -= len(pages)
    times = [page.time for page in pages if page.time is not None]
    if videos.as_one and times and all(one < other for one, other in pairwise(times)):
        frames = tuple(part.with_image(PageImage(page, fit, budget)) for page in pages)
        yield part.with_frames(VideoFrames(frames, tuple(times), document.seconds))
        return
    note = videos.note if times else ""
    for page in pages:
        if len(document) > 1:
            yield TextPart(type="text", text=f"{page.label[:1].upper()}{page.label[1:]}:")
        yield part.with_image(PageImage(page, fit, budget, note))
        note = ""  # once is enough


class _Budget:
    """What the files of one request may still take."""

    def __init__(self, limits: DocumentLimits) -> None:
        self.limits = limits
        self.pages_left = limits.pages
        self._files_left = _MAX_FILES
        self._seconds_left = limits.request_seconds
        self._bytes_left = _MAX_KEPT
        self._read = 0
        self._awake: list[Document] = []  # the last used one is the last
        self._opened: dict[tuple[Any, ...], Document] = {}

    def opened(self, part: FilePart, param: str, open_file: FileOpener) -> Document:
        """Return the document of a part. Parts may name single pages of one file, which is opened once."""
        field = source_path(part, param)
        key = id(part.image), part.password, part.fps, part.frames, part.changes
        if isinstance(part.image, bytes) and key in self._opened:
            return self._opened[key].view(field)
        with self._opening(field):
            document = open_file(part, param, replace(self.limits, request_seconds=self._seconds_left))
        self._opened[key] = document
        return document

    def wake(self, document: Document) -> None:
        """Note that a document is used now, and let others rest where too many are awake."""
        self._awake = [*(other for other in self._awake if other is not document.file), document.file]
        for other in self._awake[:-_MAX_AWAKE]:
            other.rest()
        self._awake = self._awake[-_MAX_AWAKE:]

    @contextmanager
    def _opening(self, field: str) -> Iterator[None]:
        """Count a file, and the time that opening it takes; `field` is its path in the request."""
        if self._files_left <= 0:
            raise ImageTooLargeError(f"a request may have at most {_MAX_FILES} files of several pictures", field)
        self._files_left -= 1
        if self._seconds_left <= 0:
            raise ImageTooLargeError(f"{self._late}; send fewer", field)
        with self._timed():
            yield

    def spend(self, page: Page, fit: Fit) -> Picture:
        with self._decoding(page):
            picture = page.read(fit)
            self._read += 1
            picture = packed(picture) if self._read > _UNPACKED else picture
        self._bytes_left -= picture.data.nbytes
        if self._bytes_left < 0:
            message = f"the pages of a request may take {_MAX_KEPT >> 20:,} MB together; choose fewer pages"
            raise page.document.source.error(f"{page.label}: {message}", ImageTooLargeError)
        return picture

    def measure(self, page: Page, fit: Fit) -> Size:
        with self._decoding(page):
            return page.measure(fit)

    @contextmanager
    def _decoding(self, page: Page) -> Iterator[None]:
        if self._seconds_left <= 0:
            message = f"{page.label}: {self._late}; choose fewer pages"
            raise page.document.source.error(message, ImageTooLargeError)
        self.wake(page.document)
        with self._timed():
            yield

    @property
    def _late(self) -> str:
        return f"the files of a request may take {self.limits.request_seconds:g} s to decode"

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds_left -= time.perf_counter() - began
