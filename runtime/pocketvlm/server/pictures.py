"""Read the pictures of one HTTP request: from the request, from handles, or from allowed hosts."""

from __future__ import annotations

from pocketvlm.documents.document import Document
from pocketvlm.documents.expand import page_of
from pocketvlm.documents.open_document import open_part
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ImageError, ImageTooLargeError
from pocketvlm.messages import FilePart, ImagePart, ImageURLPart
from pocketvlm.messages.parts import source_path
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.images import Picture, read_picture
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
    """

    def __init__(
        self, settings: Settings, handles: PictureHandles, known: KnownFiles, cancellation: CancellationToken
    ) -> None:
        self._handles, self._known = handles, known
        self._cancellation = cancellation
        self._limit = settings.max_pixels
        self._document_limits = settings.documents
        self._unpacked_left = _MAX_UNPACKED * settings.max_pixels
        self._pixels_left = _MAX_DECODED * settings.max_pixels
        self._fetcher = Fetcher(settings.image_hosts) if settings.image_hosts else None

    def open_file(self, part: FilePart, param: str) -> Document:
        """Open a file of several pictures. Raises as `read` does."""
        self._cancellation.check()
        field = source_path(part, param)
        sent = self._sent(part, param, field)
        if sent is not part:
            copy = part.model_copy(update={"url": None, "base64": None, "image": getattr(sent, "image", None)})
            copy._field = part.field
            part = copy
        try:
            return open_part(part, param, self._document_limits, self._limit, local=False)
        except ImageError as error:
            raise type(error)(error.message, field) from None

    def read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        """Return the picture of a message part. Raises ImageError leaves, and GenerationCancelledError."""
        self._cancellation.check()
        field = source_path(part, param)
        if (page := page_of(part)) is not None:
            self._check_left(self._pixels_left > 0, field)
            picture = self._counted(page.read())
            self._check_left(self._pixels_left >= 0, field)
            return picture
        part = self._sent(part, param, field)
        try:
            picture = read_picture(
                part,
                param,
                max_pixels=min(self._limit, max(0, self._pixels_left)),
                max_unpacked=self._unpacked_left,
                local=False,
                known=self._known,
            )
        except ImageTooLargeError as error:
            message = error.message
            if self._pixels_left < self._limit:
                message += f" ({self._together})"
            raise ImageTooLargeError(message, field) from None
        except ImageError as error:
            raise type(error)(error.message, field) from None
        return self._counted(picture)

    def _sent(self, part: ImageURLPart | ImagePart, param: str, field: str) -> ImageURLPart | ImagePart:
        """Return a part that has what the client sent or named."""
        url = part.address
        if isinstance(part, ImagePart) and part.base64 is None and url is None:
            raise ImageError("is for Python only; send the picture as url or base64", field)
        part = self._handles.resolve(part, param)
        if self._fetcher and url is not None and url.lower().startswith(("http://", "https://")):
            return ImagePart(type="image", image=self._fetcher.fetch(url, field))
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
