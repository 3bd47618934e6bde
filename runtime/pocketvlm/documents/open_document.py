"""Open a file of several pictures. Its kind is known by its content, not by its name."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pocketvlm.documents.document import Document
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.pdf import PdfDocument
from pocketvlm.documents.stills import StillsDocument
from pocketvlm.documents.video import Sampling, VideoDocument
from pocketvlm.errors import shortened
from pocketvlm.messages import FilePart
from pocketvlm.messages.field_errors import validated
from pocketvlm.messages.file_kinds import HEAD, is_pdf, video_format
from pocketvlm.pictures.images import MAX_PIXELS
from pocketvlm.pictures.sources import find_source, open_file


def open_document(
    source: str | Path | bytes,
    *,
    password: str | None = None,
    fps: float | None = None,
    frames: int | None = None,
    changes: bool = False,
    limits: DocumentLimits | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Document:
    """Open a PDF, a picture file of one or more pages or frames, or a video: a path, a data: URI, or a file's bytes.

    Of a video, pages are `fps` frames of each second, or `frames` at even times (by default 8). With `changes`, those
    in which nothing has moved since the one before are left out; by default, one of each second is compared.

    Close it, or use it as a context manager:

        with open_document("letters.pdf") as document:
            for page in document.pages("1-3,7"):
                picture = page.read()

    Raises ImageError, which names the file, and PasswordError where the file is encrypted.
    """
    Sampling(fps, frames)
    fields = {"type": "file", "image": source, "password": password, "fps": fps, "frames": frames, "changes": changes}
    part = validated(FilePart, fields)
    return open_part(part, "source", limits or DocumentLimits(), max_pixels)


def open_part(
    part: FilePart,
    param: str,
    limits: DocumentLimits,
    max_pixels: int,
    *,
    local: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Document:
    """Open the file of a message part; `param` is the path of the part. With `local=False`, paths are refused.

    `check` raises where the file is not wanted any more. It is called while frames are compared.
    """
    source, content = find_source(part, param, local)
    if part.filename and isinstance(content, bytes):
        source = replace(source, name=shortened(part.filename))
    if not isinstance(content, Path | bytes):
        raise source.error("is not a file; give a path or the bytes of a file")
    if content == b"":
        raise source.error("is empty")
    with open_file(content, source) if isinstance(content, Path) else io.BytesIO(content) as file:
        head = file.read(HEAD)
    if is_pdf(head):
        path = content.absolute() if isinstance(content, Path) else content
        return PdfDocument(source, path, limits, part.password)
    if (format := video_format(head)) is not None:
        path = content.absolute() if isinstance(content, Path) else content
        sampling = Sampling(part.fps, part.frames, bool(part.changes), f"{param}.fps")
        return VideoDocument(source, path, format, limits, sampling, max_pixels, check)
    return StillsDocument(source, content, max_pixels)
