"""Read the pictures of one HTTP request: from the request, from handles, or from allowed hosts."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from pocketvlm.documents.document import Document
from pocketvlm.documents.expand import page_of
from pocketvlm.documents.handles import with_kept_files
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.open_document import open_part
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ImageError, ImageTooLargeError
from pocketvlm.messages import ChatRequest, FilePart, ImagePart, ImageURLPart
from pocketvlm.messages.parts import source_path
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.images import Picture, measure_picture, picture_of_size, read_picture
from pocketvlm.pictures.known_files import KnownFiles
from pocketvlm.server.remote import Fetcher
from pocketvlm.server.settings import Settings

# Pictures of a request, in times the pixels that one may have: kept decoded, and decoded one after the other.
_MAX_UNPACKED = 2
_MAX_DECODED = 32


class Pictures:
    """Reads on the request's own thread.

    A conversation holds more pictures than fit in memory, and most of them are known to the engine by their digest. So
    those beyond a limit stay packed, and are decoded again when they are encoded.

    A picture that the request shows several times, as each question of a decision does, is read and counted once.
    """

    def __init__(
        self, settings: Settings, handles: PictureHandles, known: KnownFiles, cancellation: CancellationToken
    ) -> None:
        self._handles, self._known = handles, known
        self._cancellation = cancellation
        self._limit = settings.max_pixels
        self._unpacked_left = _MAX_UNPACKED * settings.max_pixels
        self._pixels_left = _MAX_DECODED * settings.max_pixels
        self._read: dict[Hashable, Picture] = {}
        self._fetched: dict[str, bytes] = {}
        self._files: WeakKeyDictionary[Document, Hashable] = WeakKeyDictionary()  # what each was opened from
        self._fetcher = Fetcher(settings.image_hosts) if settings.image_hosts else None

    def with_files(self, request: ChatRequest) -> ChatRequest:
        """Return the request with the files that it names by handles."""
        return with_kept_files(request, self._handles)

    def open_file(self, part: FilePart, param: str, limits: DocumentLimits) -> Document:
        """Open a file of several pictures. Raises as `read` does."""
        self._cancellation.check()
        field = source_path(part, param)
        key = (*_source(part), part.password, part.fps, part.frames, part.changes, part.filename)
        sent = self._sent(part, field)
        if sent is not part:
            copy = part.model_copy(update={"url": None, "base64": None, "image": getattr(sent, "image", None)})
            copy._field = part.field
            part = copy
        try:
            document = open_part(part, param, limits, self._limit, local=False, check=self._cancellation.check)
        except ImageError as error:
            raise type(error)(error.message, field) from None
        self._files[document.file] = key
        return document

    def read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        """Return the picture of a message part. Raises ImageError leaves, and GenerationCancelledError."""
        page = page_of(part)
        if page is None or isinstance(part, ImageURLPart):
            key = _source(part)
        else:
            size = part.detail, part.max_image_tokens  # on which the page's fit depends
            key = (self._files[page.page.document.file], page.page.number, page.note, *size)
        if key not in self._read:
            self._read[key] = self._read_new(part, param)
        return self._read[key]

    def _read_new(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        if (page := page_of(part)) is not None:
            return self._of_page(page.read, source_path(part, param))

        def decode(sent: ImageURLPart | ImagePart, max_pixels: int) -> Picture:
            limits = {"max_pixels": max_pixels, "max_unpacked": self._unpacked_left}
            return read_picture(sent, param, **limits, local=False, known=self._known)

        return self._of_part(part, param, decode)

    def measure(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        """Return a picture of the same size, which may have no pixels. Raises as `read` does."""
        if (page := page_of(part)) is not None:
            return self._of_page(lambda: picture_of_size(page.measure()), source_path(part, param))
        return self._of_part(part, param, lambda sent, most: measure_picture(sent, param, max_pixels=most, local=False))

    def _of_page(self, look: Callable[[], Picture], field: str) -> Picture:
        self._cancellation.check()
        self._check_left(self._pixels_left > 0, field)
        picture = self._counted(look())
        self._check_left(self._pixels_left >= 0, field)
        return picture

    def _of_part(
        self, part: ImageURLPart | ImagePart, param: str, look: Callable[[ImageURLPart | ImagePart, int], Picture]
    ) -> Picture:
        """Return what `look` returns for the part and the pixels that it may have."""
        self._cancellation.check()
        field = source_path(part, param)
        sent = self._sent(part, field)
        try:
            picture = look(sent, min(self._limit, max(0, self._pixels_left)))
        except ImageTooLargeError as error:
            message = error.message
            if self._pixels_left < self._limit:
                message += f" ({self._together})"
            raise ImageTooLargeError(message, field) from None
        except ImageError as error:
            raise type(error)(error.message, field) from None
        return self._counted(picture)

    def _sent(self, part: ImageURLPart | ImagePart, field: str) -> ImageURLPart | ImagePart:
        """Return a part that has what the client sent or named."""
        url = part.address
        # JSON has no bytes: they are those of a handle.
        if isinstance(part, ImagePart) and part.base64 is None and url is None and not isinstance(part.image, bytes):
            raise ImageError("is for Python only; send the picture as url or base64", field)
        if self._fetcher and url is not None and url.lower().startswith(("http://", "https://")):
            if url not in self._fetched:
                self._fetched[url] = self._fetcher.fetch(url, field)
            return ImagePart(type="image", image=self._fetched[url])
        return part

    @property
    def _together(self) -> str:
        return f"the pictures of a request may have {_MAX_DECODED * self._limit:,} pixels together"

    def _check_left(self, is_left: bool, field: str) -> None:
        if not is_left:
            raise ImageTooLargeError(f"{self._together}; choose fewer pages", field)

    def _counted(self, picture: Picture) -> Picture:
        """Subtract a picture from what the others of the request may have."""
        width, height = picture.size
        self._pixels_left -= width * height
        if picture.packed_size is None:
            self._unpacked_left -= width * height
        return picture


def _source(part: ImageURLPart | ImagePart) -> tuple[Any, ...]:
    """Return where a part has its picture or file. What is for Python only is refused before it is kept."""
    if isinstance(part, ImageURLPart):
        return part.address, None, None
    return part.address, part.base64, part.image if isinstance(part.image, bytes) else None
