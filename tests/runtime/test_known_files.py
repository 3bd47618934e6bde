"""Pictures of files that were read before are the same, and are not decoded again before they are needed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.errors import ImageTooLargeError
from pocketvlm.messages import ImagePart
from pocketvlm.pictures import images, known_files
from pocketvlm.pictures.images import Picture, read_picture
from pocketvlm.pictures.known_files import KnownFile, KnownFiles


def encoded(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    picture = Image.fromarray(np.arange(40 * 24 * 3, dtype=np.uint8).reshape(24, 40, 3))
    file = io.BytesIO()
    picture.save(file, form, exif=exif)
    return file.getvalue()


def read(image: Any, known: KnownFiles, **options: Any) -> Picture:
    return read_picture(ImagePart(type="image", image=image), "image", known=known, **options)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_the_same_picture_without_decoding(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, known = encoded(form), KnownFiles()
    (tmp_path / "picture").write_bytes(data)
    first = read(data, known)
    assert first.packed_size is None and first.size == (24, 40)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_decode", None)
        for again in (read(data, known), read(tmp_path / "picture", known), read(tmp_path / "picture", known)):
            assert (again.size, again.digest, again.notes, again.pages) == (
                first.size,
                first.digest,
                first.notes,
                first.pages,
            )
        with pytest.raises(ImageTooLargeError, match="24x40"):
            read(data, known, max_pixels=24 * 40 - 1)
    assert np.array_equal(again.pixels, first.pixels)


def test_other_bytes_are_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = KnownFiles()
    path = tmp_path / "picture"
    path.write_bytes(encoded("PNG"))
    assert read(path, known).packed_size is None
    path.write_bytes(encoded("BMP"))
    assert read(path, known).packed_size is None, "the file has changed"
    monkeypatch.setattr(images, "_LARGEST_KNOWN", 10)
    assert read(path, known).packed_size is None, "too large to be read for it"


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_files, "_MOST", 2)
    known = KnownFiles()
    for name in (b"a", b"b"):
        known.add(name, KnownFile((1, 1), "", 1, ()))
    assert known.get(b"a")
    known.add(b"c", KnownFile((1, 1), "", 1, ()))
    assert [known.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
