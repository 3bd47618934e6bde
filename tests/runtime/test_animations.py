"""When the frames of animations are shown, and how many there may be."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from pocketvlm.documents import animations
from pocketvlm.documents.animations import frame_times
from pocketvlm.documents.open_document import open_document
from pocketvlm.errors import ImageTooLargeError
from pocketvlm.pictures.opened import MAX_PICTURES

DELAYS = [500, 250, 1250]  # milliseconds


def animation(format: str, delays: Any = DELAYS, count: int = 3, **options: Any) -> bytes:
    frames = [Image.new("RGB", (20, 10), (80 * number % 256, number // 256, 9)) for number in range(count)]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], duration=delays, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_labels_are_times(format: str) -> None:
    with open_document(animation(format, lossless=True)) as document:
        assert [page.label for page in document.pages()] == ["0:00.0", "0:00.5", "0:00.8"]
        assert [page.time for page in document.pages()] == [0.0, 0.5, 0.75] and document.seconds == 2.0
        assert [int(page.read().pixels[5, 5, 0]) // 80 for page in document.pages()] == [0, 1, 2]


def test_frames_without_a_delay_of_a_gif() -> None:
    assert frame_times(io.BytesIO(animation("GIF", 0))) == ([0.0, 0.1, 0.2], pytest.approx(0.3))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_a_file_that_was_cut_has_no_times(format: str) -> None:
    data = animation(format)
    for size in (*range(0, len(data) - 1, 7), 11, 12, 13):
        times, seconds = frame_times(io.BytesIO(data[:size]))
        assert len(times) < 4 and seconds <= 2.0


def test_a_single_picture_has_no_times() -> None:
    for format in ("GIF", "PNG", "WEBP"):
        assert frame_times(io.BytesIO(animation(format, count=1))) == ([], 0.0)
    with open_document(animation("TIFF")) as document:
        assert [page.label for page in document.pages()] == ["page 1 of 3", "page 2 of 3", "page 3 of 3"]


def test_a_gif_of_too_many_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    data = animation("GIF")
    start, end = data.index(b"\x21\xf9"), len(data) - 1
    longer = data[:end] + data[start:end] * 20 + b";"
    monkeypatch.setattr(animations, "MAX_PICTURES", 60)
    with pytest.raises(ImageTooLargeError, match="has more than 60 frames"):
        open_document(longer)
    monkeypatch.undo()
    with open_document(longer) as document:
        assert len(document) == 63 <= MAX_PICTURES
