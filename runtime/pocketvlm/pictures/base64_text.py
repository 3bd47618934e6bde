"""Decode base64 and data: URIs in the forms that clients write.

Known variants mean one thing only: line breaks, no padding, the alphabet for URLs, Python's b'...' around it, a prefix
that was put before another prefix, or none at all.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

_DATA = re.compile(r"\s*data:", re.IGNORECASE)
_PYTHON_BYTES = re.compile(r"""\s*b(['"])(.*)\1\s*""", re.DOTALL)
_URL_ALPHABET = str.maketrans("-_", "+/")
# How the base64 of PNG, JPEG, GIF, RIFF (WebP), BMP, TIFF and ISO media files (AVIF, HEIC) begins.
_PICTURE = re.compile(r"(iVBORw0KGgo|/9j/|_9j_|R0lGOD|UklGR|Qk[0-3]|SUkqA|SUkrA|TU0AK|AAAA..Z0eX)")
_PREFIXES = 2  # a client may put one before what has one already
_LEAST = 64  # characters; a shorter text is a name
_ALPHABET = re.compile(r"[A-Za-z0-9+/_=\s-]*")


def is_data_uri(text: str) -> bool:
    return _DATA.match(text) is not None


def is_picture(text: str) -> bool:
    """Return whether a text is the base64 of a picture rather than a path: it has no dot, and a picture's signature."""
    return len(text) >= _LEAST and _PICTURE.match(text) is not None and _ALPHABET.fullmatch(text) is not None


def decode(text: str) -> bytes:
    """Decode base64 or a data: URI. Raises ValueError, whose text says what is wrong."""
    for _ in range(_PREFIXES):
        if not is_data_uri(text):
            break
        header, comma, text = text.partition(",")
        if not comma:
            raise ValueError("has no comma before its data")
        parameters = header.lower().split(";")[1:]
        if "base64" not in (parameter.strip() for parameter in parameters):
            return _decode_plain(text)
        text = unquote(text)
    return _decode_base64(text)


def _decode_plain(text: str) -> bytes:
    """Decode the data of a URI without `;base64`, which some clients forget."""
    if is_picture(text):
        return _decode_base64(text)
    try:
        return unquote_to_bytes(text)
    except UnicodeEncodeError:
        raise ValueError("contains half of a surrogate pair") from None


def _decode_base64(text: str) -> bytes:
    if quoted := _PYTHON_BYTES.fullmatch(text):
        text = quoted[2].replace("\\n", "")
    text = "".join(text.split()).rstrip("=")
    if "-" in text or "_" in text:
        text = text.translate(_URL_ALPHABET)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"bad base64: {error}") from None
