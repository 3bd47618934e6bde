"""Pictures in formats that Pillow reads: pages of TIFF, frames of animations, collections of HEIC and JPEG (MPO)."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path

from pocketvlm.documents.document import Document
from pocketvlm.documents.fit import Fit
from pocketvlm.pictures.images import MAX_PIXELS, Picture, count_pictures, open_pictures, read_one
from pocketvlm.pictures.sources import Source, open_file


class StillsDocument(Document):
    """The pictures of one file. Their sizes are the file's; a `Fit` does not change them."""

    def __init__(self, source: Source, content: Path | bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._lock = threading.Lock()
        self._max_pixels = max_pixels
        self._file = open_file(content, source) if isinstance(content, Path) else io.BytesIO(content)
        try:
            self._opened = open_pictures(self._file, source, max_pixels)
            count = count_pictures(self._opened, source)
        except BaseException:
            self._file.close()
            raise
        super().__init__(source, count, "frame" if self._opened.pages < count else "page")

    def read(self, number: int, fit: Fit | None = None) -> Picture:  # noqa: ARG002
        with self._lock:
            picture = read_one(self._opened, number - 1, self._of_page(number), self._max_pixels)
        return replace(picture, pages=len(self))

    def close(self) -> None:
        with self._lock:
            self._file.close()
