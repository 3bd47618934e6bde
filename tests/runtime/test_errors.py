"""Messages are one line that a terminal can show, whatever a file or another library puts into them."""

from __future__ import annotations

import pytest

from pocketvlm.errors import EngineError, ImageNotFoundError, OutputError, PocketVLMError, RequestError


@pytest.mark.parametrize(
    "error",
    [
        PocketVLMError("a\nb"),
        EngineError("a\r\nb\x1b[2J"),
        RequestError("a\u2028b", "field\x00"),
        ImageNotFoundError("\udcff", "image\n"),
        OutputError("\u202eb", "folder\nname"),
        OutputError("x" * 100_000, "y" * 100_000),
    ],
)
def test_one_line(error: PocketVLMError) -> None:
    for text in (str(error), getattr(error, "message", "")):
        assert len(text.splitlines()) <= 1
        assert len(text) < 2100
        assert text.isprintable()
        text.encode()


def test_both_ends_of_a_long_message_stay() -> None:
    assert str(RequestError(f"begin{'x' * 9000}end", "seed")).startswith("seed: begin")
    assert str(RequestError(f"begin{'x' * 9000}end", "seed")).endswith("end")


def test_text_stays_as_it_is() -> None:
    text = "„Größe“ — 图片 is 1:2, 🙂\u200d"
    assert str(RequestError(text)) == text
