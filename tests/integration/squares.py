"""Documents that iota can read: a coloured square on each page."""

from __future__ import annotations

from typing import Any

from pdfs import pdf, rectangle

COLOURS = {"Red": "0.86 0.12 0.12", "Blue": "0.12 0.3 0.86", "Green": "0.1 0.6 0.2"}
COLOUR = "What colour is the square?"
SCHEMA = {
    "type": "object",
    "properties": {"shapes": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["shapes"],
    "additionalProperties": False,
}


def squares(count: int = 3, bad: int | None = None, **options: Any) -> bytes:
    """A PDF of pages with a square each; page `bad` has edges of a kilometre."""
    colours = [*COLOURS.values()]
    pages = [rectangle(colours[index % 3], 30, 30, 40, 40) for index in range(count)]
    usual, large = b"/MediaBox [0 0 100 100]          ", b"/MediaBox [0 0 2834646 2834646]  "
    file = pdf(pages, box="[0 0 100 100]", extra=usual.decode(), **options)
    before, *after = file.split(usual)
    return before + b"".join((large if page == bad else usual) + rest for page, rest in enumerate(after, 1))
