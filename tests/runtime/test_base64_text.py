"""Base64 and data: URIs in the forms that clients write."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from urllib.parse import quote

import pytest
from PIL import Image

from pocketvlm.errors import ImageError
from pocketvlm.messages import ImagePart
from pocketvlm.pictures import base64_text
from pocketvlm.pictures.images import read_picture

DATA = bytes(range(256)) + b"\xff\xfb\xbf?"  # all of the alphabet, and padding
TEXT = base64.b64encode(DATA).decode()


def picture(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"DATA:image/png;charset=utf-8;BASE64,{TEXT}",
        f"data:image/png;base64;name=a.png,{TEXT}",
        f"  data: image/png ; base64 , {TEXT}\n",
        f"data:image/png;base64,data:image/jpeg;base64,{TEXT}",
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        f"data:image/png;base64,{TEXT.encode()!r}",
        f"data:image/png;base64,{base64.encodebytes(DATA)!r}",
        f"data:application/octet-stream,{quote(DATA)}",
        base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(DATA).decode(),
        TEXT.rstrip("="),
        TEXT + "==",
    ],
)
def test_forms(text: str) -> None:
    assert base64_text.decode(text) == DATA


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,####", "bad base64"),
        ("data:image/png;base64,a", "bad base64"),
        (f"{TEXT}{TEXT}", "bad base64"),
        ("bad base64 of dots...", "bad base64"),
        ("data:,\ud800", "surrogate"),
        ("data:;base64," * 1_000_000, "bad base64"),
        ("\udfff", "bad base64"),
    ],
)
def test_what_has_no_one_meaning(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        base64_text.decode(text)


FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: picture("PNG"),
    "jpeg": lambda: picture("JPEG"),
    "gif": lambda: picture("GIF"),
    "webp": lambda: picture("WEBP"),
    "bmp": lambda: picture("BMP"),
    "tiff": lambda: picture("TIFF"),
    "big tiff": lambda: picture("TIFF", big_tiff=True),
    "avif": lambda: picture("AVIF"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_bare_picture_is_known_by_its_signature(kind: str) -> None:
    text = base64.b64encode(FILES[kind]()).decode()
    assert base64_text.is_picture(text)
    for url in (text, base64.encodebytes(FILES[kind]()).decode(), f"data:image/{kind},{text}"):
        for local in (False, True):
            assert read_picture(ImagePart(type="image", url=url), "p", local=local).size == (40, 30)


@pytest.mark.parametrize(
    "text",
    ["/9j/" + "a/" * 40 + "b.jpg", "/9j/short", "photos/" + "a" * 80, "Qkk" + "a" * 80, "A" * 100, "", "iVBORw0KGgo"],
)
def test_a_path_is_no_picture(text: str) -> None:
    assert not base64_text.is_picture(text)
    with pytest.raises(ImageError, match="files are not read here"):
        read_picture(ImagePart(type="image", url=text), "p", local=False)
