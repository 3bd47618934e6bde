"""PDF files made by hand: as few objects as a viewer needs, with what a test is about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def pdf(
    pages: Sequence[bytes],
    *,
    box: str = "[0 0 200 100]",
    extra: str = "",
    objects: Mapping[int, bytes] | None = None,
    catalog: str = "",
    password: str | None = None,
) -> bytes:
    """Return a file whose pages have these content streams; F1 is Helvetica.

    `extra` are more entries of each page, `catalog` of the catalog; `objects` have numbers from 900. With a `password`,
    the file is encrypted (RC4 with 40 bits, revision 2 of the standard handler).
    """
    kids = " ".join(f"{10 + 2 * index} 0 R" for index in range(len(pages)))
    bodies = {
        1: f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        2: f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] /MediaBox {box} >>".encode(),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        **(objects or {}),
    }
    key = None
    trailer = "/Root 1 0 R"
    if password is not None:
        key, encryption = _encryption(password)
        trailer += f" /Encrypt 4 0 R /ID [<{'00' * 16}> <{'00' * 16}>]"
        bodies[4] = encryption
    for index, content in enumerate(pages):
        number = 10 + 2 * index
        bodies[number] = (
            f"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F1 3 0 R >> >> /Contents {number + 1} 0 R {extra} >>"
        ).encode()
        data = _rc4(_object_key(key, number + 1), content) if key else content
        bodies[number + 1] = b"<< /Length %d >> stream\n%s\nendstream" % (len(data), data)
    file = bytearray(b"%PDF-1.7\n")
    places = {}
    for number, body in bodies.items():
        places[number] = len(file)
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start, size = len(file), max(places) + 1
    file += b"xref\n0 %d\n" % size
    for number in range(size):
        file += b"%010d %05d %c \n" % (places.get(number, 0), 0 if number in places else 65535, b"fn"[number in places])
    return bytes(file + f"trailer << /Size {size} {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode())


def text(words: str, size: int = 12, place: tuple[int, int] = (10, 50)) -> bytes:
    """Return a content stream with one line of text."""
    return f"BT /F1 {size} Tf {place[0]} {place[1]} Td ({words}) Tj ET".encode()


def rectangle(colour: str, x: float, y: float, width: float, height: float) -> bytes:
    """Return a content stream that fills a rectangle; `colour` is three numbers from 0 to 1."""
    return f"{colour} rg {x} {y} {width} {height} re f\n".encode()


# ---- encryption: PDF 1.7, 7.6.3


def _encryption(password: str) -> tuple[bytes, bytes]:
    padded = (password.encode() + _PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    permissions = -4
    key = hashlib.md5(padded + owner + permissions.to_bytes(4, "little", signed=True) + bytes(16)).digest()[:5]
    user = _rc4(key, _PADDING)
    entries = f"/Filter /Standard /V 1 /R 2 /O <{owner.hex()}> /U <{user.hex()}> /P {permissions}"
    return key, f"<< {entries} >>".encode()


def _object_key(key: bytes, number: int) -> bytes:
    return hashlib.md5(key + number.to_bytes(3, "little") + bytes(2)).digest()[:10]


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i = j = 0
    result = bytearray()
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        result.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(result)
