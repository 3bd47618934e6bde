"""The pictures of one request over HTTP: from the request, from handles, or from hosts that the owner allowed."""

from __future__ import annotations

from pocketvlm.errors import ImageError, ImageTooLargeError
from pocketvlm.messages import ImagePart, ImageURLPart
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.images import Picture, read_picture
from pocketvlm.server.remote import Fetcher
from pocketvlm.server.settings import Settings

_ALL_PICTURES = 2  # all of one request together may have this many times the pixels that one may have


class Pictures:
    """Reads on the request's own thread. All pictures of a request are in memory at once, so they share a limit."""

    def __init__(self, settings: Settings, handles: PictureHandles) -> None:
        self._handles = handles
        self._limit = settings.max_pixels
        self._left = _ALL_PICTURES * settings.max_pixels
        self._fetcher = Fetcher(settings.image_hosts) if settings.image_hosts else None

    def read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        """Raises ImageError leaves."""
        if isinstance(part, ImagePart):
            for name in ("path", "image"):
                if getattr(part, name) is not None:
                    raise ImageError("is for Python only; send the picture as url or base64", f"{param}.{name}")
            url, field = part.url, f"{param}.url" if part.url is not None else f"{param}.base64"
        else:
            url, field = part.image_url.url, f"{param}.image_url.url"
        part = self._handles.resolve(part, param)
        if self._fetcher and url is not None and url.lower().startswith(("http://", "https://")):
            part = ImagePart(type="image", image=self._fetcher.fetch(url, field))
        try:
            picture = read_picture(part, param, max_pixels=min(self._limit, self._left), local=False)
        except ImageTooLargeError as error:
            message = error.message
            if self._left < self._limit:
                message = f"the pictures have over {_ALL_PICTURES * self._limit:,} pixels together"
            raise ImageTooLargeError(message, field) from None
        except ImageError as error:
            raise type(error)(error.message, field) from None
        width, height = picture.size
        self._left -= width * height
        return picture
