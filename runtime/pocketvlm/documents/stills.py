"""Pictures in formats that Pillow reads: pages of TIFF, frames of animations, collections of HEIC and JPEG (MPO)."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path

from pocketvlm.documents.animations import frame_times
from pocketvlm.documents.document import Document
from pocketvlm.documents.fit import Fit
from pocketvlm.errors import ImageTooLargeError
from pocketvlm.pictures.images import (
    MAX_PIXELS,
    Picture,
    count_pictures,
    measure_one,
    open_pictures,
    read_one,
    select_one,
)
from pocketvlm.pictures.opened import MAX_PICTURES
from pocketvlm.pictures.sources import Source, open_file

_MAX_DECODED = 32  # times the pixels that a picture may have: Pillow decodes all frames before the one that is read


class StillsDocument(Document):
    """The pictures of one file. Their sizes are the file's; a `Fit` does not change them."""

    def __init__(self, source: Source, content: Path | bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._lock = threading.Lock()
        self._max_pixels = max_pixels
        self._file = open_file(content, source) if isinstance(content, Path) else io.BytesIO(content)
        try:
            times, seconds = self._times(source)
            self._opened = open_pictures(self._file, source, max_pixels)
            count = count_pictures(self._opened, source)
        except BaseException:
            self._file.close()
            raise
        super().__init__(source, count, "frame" if self._opened.pages < count else "page")
        if self.unit == "frame" and len(times) == count:
            self.times, self.seconds = times, seconds

    def measure(self, number: int, fit: Fit | None = None) -> tuple[int, int]:
        self._check_distance(number)
        source = self._of_page(number)
        with self._lock:
            size = measure_one(select_one(self._opened, number - 1, source), source, self._max_pixels)
        return size or super().measure(number, fit)

    def read(self, number: int, fit: Fit | None = None) -> Picture:  # noqa: ARG002
        self._check_distance(number)
        with self._lock:
            picture = read_one(self._opened, number - 1, self._of_page(number), self._max_pixels)
        return replace(picture, pages=len(self))

    def _times(self, source: Source) -> tuple[list[float], float]:
        try:
            return frame_times(self._file)
        except ValueError as error:
            raise source.error(str(error), ImageTooLargeError) from None

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _check_distance(self, number: int) -> None:
        """Raise ImageTooLargeError for a frame before which too many have to be decoded."""
        width, height = self._opened.size
        most = min(MAX_PICTURES, _MAX_DECODED * self._max_pixels // max(1, width * height))
        if self.unit == "frame" and number > max(1, most):  # the first is checked when it is read
            raise self._of_page(number).error(
                f"is too far from the first; of {width}x{height} pixels, at most {max(1, most):,} are decoded",
                ImageTooLargeError,
            )
