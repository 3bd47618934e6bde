"""Where the pictures and files of a request come from: what the prompt needs to know of them."""

from __future__ import annotations

from typing import Protocol

from pocketvlm.documents.document import Document
from pocketvlm.documents.expand import page_of
from pocketvlm.documents.handles import with_kept_files
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.open_document import open_part
from pocketvlm.messages import ChatRequest, FilePart, ImagePart, ImageURLPart
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.images import Picture, measure_picture, picture_of_size, read_picture
from pocketvlm.pictures.known_files import KnownFiles


class PictureSource(Protocol):
    """Reads what the parts of a request name; `param` is the path of a part. All raise ImageError."""

    def with_files(self, request: ChatRequest) -> ChatRequest:
        """Return the request with the files that it names by handles."""
        ...

    def open_file(self, part: FilePart, param: str, limits: DocumentLimits) -> Document:
        """Open a file of several pictures."""
        ...

    def read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        """Return the picture of a part."""
        ...

    def measure(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        """Return a picture of the same size, which may have no pixels."""
        ...


class LocalPictures:
    """Reads for a program on this machine: files by their paths, too."""

    def __init__(self, handles: PictureHandles, max_pixels: int) -> None:
        self._handles, self._known = handles, KnownFiles()
        self._max_pixels = max_pixels

    def with_files(self, request: ChatRequest) -> ChatRequest:
        return with_kept_files(request, self._handles)

    def open_file(self, part: FilePart, param: str, limits: DocumentLimits) -> Document:
        return open_part(part, param, limits, self._max_pixels)

    def read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        if (page := page_of(part)) is not None:
            return page.read()
        return read_picture(part, param, max_pixels=self._max_pixels, known=self._known)

    def measure(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        if (page := page_of(part)) is not None:
            return picture_of_size(page.measure())
        return measure_picture(part, param, max_pixels=self._max_pixels)
