"""PDF files: pages are drawn by PDFium, in a process of its own, at the size that the model will see."""

from __future__ import annotations

import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketvlm.documents.decoder_process import DecoderProcess, DecoderStoppedError, check_answer
from pocketvlm.documents.document import Document
from pocketvlm.documents.fit import Fit, printed_size, resolution
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import ImageTooLargeError
from pocketvlm.pictures.images import Picture, picture_of
from pocketvlm.pictures.sources import Source
from pocketvlm.system.extras import install_extra

_WORKER = "pocketvlm.documents.pdf_worker"
_MAX_EDGE = 14_400  # points; PDF 1.7, annex C: no viewer need show more
_METRES = 0.0254 / 72  # of a point
_LEGIBLE = 60  # dots per inch; print of 10 points has letters of 4 pixels then


class PdfDocument(Document):
    """Raises ImageError for a file that cannot be used, PasswordError where it is encrypted."""

    def __init__(self, source: Source, content: Path | bytes, limits: DocumentLimits, password: str | None) -> None:
        if find_spec("pypdfium2") is None:
            raise source.error(f"PDF needs one more package: {install_extra('documents')}")
        options = {} if password is None else {"password": password}
        self._has_password = password is not None
        self._process = DecoderProcess(_WORKER, content, options, limits)
        try:
            facts = self._process.open()
        except DecoderStoppedError as error:
            raise source.error(f"cannot be opened: {error}") from None
        check_answer(facts, source, has_password=self._has_password)
        super().__init__(source, facts["pages"])

    def measure(self, number: int, fit: Fit | None = None) -> tuple[int, int]:
        return (fit or printed_size)(self._points(number))

    def read(self, number: int, fit: Fit | None = None) -> Picture:
        started = time.perf_counter()
        points = self._points(number)
        size = (fit or printed_size)(points)
        _, pixels = self._ask(self._of_page(number), {"page": number, "size": size}, 3 * size[0] * size[1])
        notes: tuple[str, ...] = ()
        if (dpi := resolution(points, size)) < _LEGIBLE:
            notes = (f"{self.label(number)} is seen at {dpi:.0f} dpi, at which small print cannot be read",)
        return picture_of(_array(pixels, size), started, pages=len(self), notes=notes)

    def rest(self) -> None:
        self._process.rest()

    def close(self) -> None:
        self._process.close()

    def _points(self, number: int) -> tuple[float, float]:
        """Return the size of a page in points. Raises ImageError for one that cannot be drawn."""
        source = self._of_page(number)
        width, height = self._ask(source, {"page": number})[0]["points"]
        if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
            raise source.error("has no area")
        if max(width, height) > _MAX_EDGE:
            raise source.error(
                f"{width * _METRES:.1f} x {height * _METRES:.1f} m is too large; an edge has at most "
                f"{_MAX_EDGE * _METRES:.2f} m",
                ImageTooLargeError,
            )
        return width, height

    def _ask(self, source: Source, request: dict[str, Any], most: int = 0) -> tuple[dict[str, Any], bytes]:
        try:
            answer, data = self._process.ask(request, most)
        except DecoderStoppedError as error:
            raise source.error(f"cannot be drawn: {error}") from None
        check_answer(answer, source, has_password=self._has_password)
        return answer, data


def _array(data: bytes, size: tuple[int, int]) -> Any:
    import numpy as np

    return np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3)
