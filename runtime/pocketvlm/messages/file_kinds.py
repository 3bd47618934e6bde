"""What a file is by its first bytes or its ending: PDFs, videos (all of which is meant), and pictures alike."""

from __future__ import annotations

import re

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
DOCUMENT_SUFFIXES = (".pdf", *VIDEO_SUFFIXES)
HEAD = 1024  # bytes; some programs begin a PDF with something else
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
# FFmpeg's demuxers, by how files begin.
_VIDEOS = (
    (re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip)", re.DOTALL), "mov"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "avi"),
    (re.compile(rb"G.{187}G.{187}G", re.DOTALL), "mpegts"),
)


def is_pdf(head: bytes) -> bool:
    """Return whether a file that begins with `head`, of HEAD bytes, is a PDF."""
    return b"%PDF-" in head


def video_format(head: bytes) -> str | None:
    """Return FFmpeg's name of a video's format; None for other files."""
    if head[4:8] == b"ftyp" and brands(head) & (HEIF_BRANDS | AVIF_BRANDS):
        return None
    return next((name for signature, name in _VIDEOS if signature.match(head)), None)


def brands(head: bytes) -> set[bytes]:
    """Return the brands of an ISO file, of which the first box lists them."""
    box = head[: int.from_bytes(head[:4], "big")]
    return {box[8:12], *(box[start : start + 4] for start in range(16, len(box), 4))}
