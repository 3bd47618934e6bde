"""Render the pages of a PDF file with PDFium: a program for `decoder_process`.

This build of PDFium runs no scripts and reaches no network. Pages are drawn as a viewer shows them: upright, within
their crop box, on white, with annotations and filled forms.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from pocketvlm.documents.decoder_worker import Answer, Decoder, DecodingError, serve

_FLAGS = pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER  # RGB
_WHITE = (255, 255, 255, 255)
_REOPENED_AFTER = 32 << 20  # bytes; PDFium keeps what it has read of a file


class _Pages:
    def __init__(self, content: Path | bytes, options: Mapping[str, Any]) -> None:
        self._content = content
        self._password = options.get("password")
        self._open()
        self._least = _used_memory()

    def __len__(self) -> int:
        return len(self._document)

    def __call__(self, request: Mapping[str, Any]) -> Answer:
        """Return the size of a page in points, or its pixels where the request has `size`."""
        if _used_memory() > self._least + _REOPENED_AFTER:
            self._document.close()
            self._open()
            self._least = max(self._least, _used_memory())
        index = request["page"] - 1
        try:
            page = self._document[index]
        except pypdfium2.PdfiumError:
            raise DecodingError("damaged", "damaged") from None
        try:
            if "size" not in request:
                return {"points": page.get_size()}, []
            return {}, self._drawn(page, *request["size"])
        finally:
            page.close()

    def _open(self) -> None:
        try:
            self._document = pypdfium2.PdfDocument(self._content, password=self._password)
            self._document.init_forms()
        except pypdfium2.PdfiumError as error:
            if error.err_code == pdfium.FPDF_ERR_PASSWORD:
                raise DecodingError("password", "") from None
            if error.err_code == pdfium.FPDF_ERR_SECURITY:
                raise DecodingError("unsupported", "its kind of encryption is not supported") from None
            raise DecodingError("damaged", "damaged or truncated, or without pages") from None

    def _drawn(self, page: pypdfium2.PdfPage, width: int, height: int) -> list[memoryview]:
        """Return the rows of a page that is stretched to a size in pixels."""
        bitmap = pypdfium2.PdfBitmap.new_native(width, height, pdfium.FPDFBitmap_BGR)
        try:
            bitmap.fill_rect(_WHITE, 0, 0, width, height)
            area = (bitmap, page, 0, 0, width, height, 0, _FLAGS)
            pdfium.FPDF_RenderPageBitmap(*area)
            if page.formenv is not None:
                pdfium.FPDF_FFLDraw(page.formenv, *area)
            rows = memoryview(bitmap.buffer).cast("B")
            stride = bitmap.stride
            if stride == 3 * width:
                return [memoryview(bytes(rows[: height * stride]))]
            return [memoryview(bytes(rows[y * stride : y * stride + 3 * width])) for y in range(height)]
        finally:
            bitmap.close()


def _used_memory() -> int:
    """Return the bytes of this process that are in memory; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/statm").read_text("ascii").split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE


def _open(content: Path | bytes, options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Decoder]:
    pages = _Pages(content, options)
    return {"pages": len(pages)}, pages


if __name__ == "__main__":
    serve(_open)
