"""Read the pictures of one HTTP request: from the request, from handles, or from allowed hosts."""

from __future__ import annotations

from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ImageError, ImageTooLargeError
from pocketvlm.messages import ImagePart, ImageURLPart
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
        self._unpacked_left = _MAX_UNPACKED * settings.max_pixels
        self._pixels_left = _MAX_DECODED * settings.max_pixels
        self._fetcher = Fetcher(settings.image_hosts) if settings.image_hosts else None

    def read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        """Return the picture of a message part. Raises ImageError leaves, and GenerationCancelledError."""
        self._cancellation.check()
        field, url = source_path(part, param), part.address
        if isinstance(part, ImagePart) and part.base64 is None and url is None:
            raise ImageError("is for Python only; send the picture as url or base64", field)
        part = self._handles.resolve(part, param)
        if self._fetcher and url is not None and url.lower().startswith(("http://", "https://")):
            part = ImagePart(type="image", image=self._fetcher.fetch(url, field))
        try:
            picture = read_picture(
                part,
                param,
                max_pixels=min(self._limit, self._pixels_left),
                max_unpacked=self._unpacked_left,
                local=False,
                known=self._known,
            )
        except ImageTooLargeError as error:
            message = error.message
            if self._pixels_left < self._limit:
                message += f" (the pictures of a request may have {_MAX_DECODED * self._limit:,} pixels together)"
            raise ImageTooLargeError(message, field) from None
        except ImageError as error:
            raise type(error)(error.message, field) from None
        width, height = picture.size
        self._pixels_left -= width * height
        if picture.packed_size is None:
            self._unpacked_left -= width * height
        return picture
