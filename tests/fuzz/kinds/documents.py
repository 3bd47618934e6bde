"""Files of several pictures: opened, measured and read page by page, as a chat does, within limits."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fuzz.cases import Original
from fuzz.formats import drawing, saved
from fuzz.formats.pdf import canonical
from fuzz.kinds import Attempt, Work
from fuzz.outcomes import HANG, MEMORY, MESSAGE, not_clean, refusal
from fuzz.runner import run_in_child
from pdfs import pdf, rectangle, text
from pocketvlm import open_document
from pocketvlm.documents.document import Page
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import PocketVLMError

BATCH = 50
LIMITS = DocumentLimits(seconds=2, memory=512 << 20)
PASSWORD = "secret"
_PIXELS = 4_000_000
_PAGES = 3  # of a file, and its last one
_SPARE = 1.5  # seconds of a processor: to start, and to notice the limit
_SLACK = 32 << 20  # bytes: what is shared with other processes
_VIDEOS = {"mp4": "iso_media", "matroska": "matroska", "mpegts": "mpeg_ts"}  # FFmpeg's format: ours


def originals() -> dict[str, Original]:
    files = {name: Original("pdf", canonical(data)) for name, data in _pdfs().items()}
    for compression in ("tiff_deflate", "jpeg", "group4"):
        pages = [drawing("1" if compression == "group4" else "RGB").rotate(90 * n, expand=True) for n in range(4)]
        data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression=compression, dpi=(204, 98))
        files[f"tiff {compression}"] = Original("tiff", data)
    frames = [drawing("P").rotate(90 * n) for n in range(4)]
    files["gif"] = Original("gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100))
    videos = run_in_child(lambda: {name: _video(name) for name in _VIDEOS})  # FFmpeg begins threads
    return files | {f"video {name}": Original(_VIDEOS[name], data) for name, data in videos.items()}


def _pdfs() -> dict[str, bytes]:
    page = b"q\n1 0 0 1 5 5 cm\n" + rectangle("1 0 0", 0, 0, 60, 60) + text("Page of a letter") + b"\nQ"
    look = b"<< /Type /XObject /Subtype /Form /BBox [0 0 50 50] /Length 25 >> stream\n"
    look += b"0 1 0 rg\n0 0 50 50 re f  \nendstream"
    stamp = b"<< /Type /Annot /Subtype /Stamp /Rect [0 0 50 50] /F 4 /AP << /N 901 0 R >> >>"
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (x) /Rect [150 50 200 100] /F 4 /AP << /N 901 0 R >> >>"
    )
    form: dict[str, Any] = {"catalog": "/AcroForm << /Fields [902 0 R] >>"}
    form |= {"extra": "/Annots [900 0 R 902 0 R]", "objects": {900: stamp, 901: look, 902: field}}
    scans = [drawing().resize((200, 160)), drawing("1")]
    return {
        "pdf text": pdf([page] * 4),
        "pdf turned": pdf([page] * 2, extra="/Rotate 90 /CropBox [10 10 150 90] /UserUnit 2"),
        "pdf form": pdf([page], **form),
        "pdf encrypted": pdf([page] * 2, password=PASSWORD),
        "pdf scan": saved(scans[0], "PDF", save_all=True, append_images=scans[1:]),
    }


def _video(format: str) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 40, "yuv420p", 200_000
        for number in range(20):
            frame = av.VideoFrame.from_image(drawing().rotate(9 * number))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@contextmanager
def opened(work: Work) -> Iterator[Attempt]:
    def attempt(name: str, data: bytes) -> str | None:
        path = work.file("document", data)
        password = PASSWORD if "encrypted" in name else None
        began, tries, refused = _processor(), 1, None
        try:
            with open_document(path, password=password, limits=LIMITS, max_pixels=_PIXELS) as document:
                pages = [*document.pages()] if len(document) < 1000 else [*document.pages("1-3")]
                for page in dict.fromkeys([*pages[:_PAGES], pages[-1]]):
                    tries += 2
                    refused = _refusal_of(page) or refused
        finally:
            _check_limits(_processor() - began, tries)
        return refused

    yield attempt


def _refusal_of(page: Page) -> str | None:
    """Read a page, and return why it cannot be read. Its size was to be had before."""
    try:
        size = page.measure()
        picture = page.read()
    except PocketVLMError as error:
        judged = refusal(str(error))
        if not judged.clean:
            not_clean(judged.outcome, judged.where, judged.detail)
        return str(error)
    if picture.size != size:
        not_clean(MESSAGE, f"measured {size}, read {picture.size}")
    return None


def _processor() -> float:
    """Return the processor seconds of the decoders that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _check_limits(seconds: float, tries: int) -> None:
    """The decoders are in groups of their own, which the harness does not watch."""
    if seconds > tries * (LIMITS.seconds + _SPARE):
        not_clean(HANG, "the decoder takes longer than it may", f"{seconds:.1f} s for {tries} requests")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if peak > LIMITS.memory + _SLACK:
        not_clean(MEMORY, "the decoder takes more than it may", f"{peak >> 20} MB")
