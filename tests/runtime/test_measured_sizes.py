"""Sizes of pictures from their headers are those of the decoded, upright pictures."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fuzz.formats import picture_originals
from pdfs import pdf, rectangle
from pocketvlm import VLM
from pocketvlm.documents.open_document import open_document
from pocketvlm.errors import ImageFormatError, ImageTooLargeError
from pocketvlm.messages import ImagePart
from pocketvlm.pictures.images import measure_picture, read_picture

SOUND = {name: data for name, (_, data) in picture_originals().items()}
TURNED = Image.Exif()
TURNED[0x0112] = 6


def measured(image: Any, **options: Any) -> tuple[tuple[int, int], bool]:
    """Return the size, and whether it was read without pixels."""
    picture = measure_picture(ImagePart(type="image", image=image), "p", **options)
    return picture.size, picture.data.size == 0


@pytest.mark.parametrize("name", SOUND)
def test_headers_say_the_size(name: str) -> None:
    read = read_picture(ImagePart(type="image", image=SOUND[name]), "p")
    assert measured(SOUND[name]) == (read.size, True)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_of_turned_pictures(format: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture"
    Image.new("RGB", (60, 20), "red").save(path, format, exif=exif)
    size = (20, 60) if orientation >= 5 else (60, 20)
    assert measured(path) == (size, True)
    assert read_picture(ImagePart(type="image", image=path), "p").size == size


def test_of_png_with_its_metadata_at_the_end() -> None:
    """Other chunks may follow the pixels; the orientation holds all the same."""
    file = io.BytesIO()
    Image.new("RGB", (60, 20), "red").save(file, "PNG")
    data, body = file.getvalue(), TURNED.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    late = data[:-12] + chunk + data[-12:]
    assert measured(late) == ((20, 60), True)
    picture = read_picture(ImagePart(type="image", image=late), "p")
    assert picture.size == (20, 60) and (picture.pixels == (255, 0, 0)).all()


def test_of_pictures_in_memory() -> None:
    turned = Image.new("RGB", (60, 20))
    turned.getexif()[0x0112] = 8
    assert measured(turned) == ((20, 60), True)
    assert measured(np.zeros((20, 60, 3), np.uint8)) == ((60, 20), True)


def test_what_the_header_shows_to_be_wrong() -> None:
    with pytest.raises(ImageTooLargeError):
        measured(SOUND["png rgb"], max_pixels=10)
    for wrong in (b"", b"text", SOUND["png rgb"][:20]):
        with pytest.raises(ImageFormatError):
            measured(wrong)
    assert measured(SOUND["jpeg rgb" if "jpeg rgb" in SOUND else "png rgb"][:-30])[1]  # damage behind it is not seen


def stills(format: str, count: int = 3) -> bytes:  # Pillow writes the places of more in MPO wrongly
    first, *others = (Image.new("L", (40 + 8 * n, 30), 60 * n) for n in range(count))
    if format in ("GIF", "WEBP", "PNG"):  # frames have one size
        first, *others = (one.resize((40, 30)).convert("RGB") for one in (first, *others))
    file = io.BytesIO()
    options = {"compression": "group4", "dpi": (204, 98)} if format == "TIFF" else {"duration": 100}
    first = first.convert("1") if format == "TIFF" else first
    others = [other.convert("1") if format == "TIFF" else other for other in others]
    first.save(file, format, save_all=True, append_images=others, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG", "MPO"])
def test_of_every_page(format: str) -> None:
    with open_document(stills(format)) as document:
        assert len(document) > 1
        for page in [*document.pages()][::-1]:
            assert page.measure() == page.read().size, page.label


def test_of_the_pages_of_a_pdf() -> None:
    with open_document(
        pdf([rectangle("1 0 0", 0, 0, 9, 9)] * 2, extra="/Rotate 90 /CropBox [0 0 120 100]")
    ) as document:
        for page in document.pages():
            for fit in (None, lambda points: (round(points[0]), round(2 * points[1]))):
                assert page.measure(fit) == page.read(fit).size


def test_counting_decodes_nothing(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count is that of the answer, although no pixel was read."""
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "blue").save(file, "JPEG", exif=TURNED)
    document = pdf([rectangle("1 0 0", 0, 0, 100, 100)] * 2)
    content: list[Any] = [{"type": "image", "image": file.getvalue()}, {"type": "file", "image": document}, "What?"]
    with VLM.load(iota_bundle, threads=1, context_size=1024) as vlm:
        answer = vlm.chat([{"role": "user", "content": content}], max_tokens=1)
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "load", None)
            patch.setattr("pocketvlm.documents.pdf.PdfDocument.read", None)
            count = vlm.count_tokens([{"role": "user", "content": content}])
    assert count.total == answer.usage.prompt_tokens and len(count.images) == 3
