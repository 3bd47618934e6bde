"""What commands print for people: rows of a label and a text, lines in a colour, and sizes."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pocketvlm.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

Row = tuple[str, str]  # a label and its text
_GAP = 2  # columns
_LEAST_TEXT = 24  # columns beside the labels; with fewer, the texts stand below them
_UNBROKEN = "\ue000"  # stands for a space at which no line is broken


def whole(text: object) -> str:
    """Return a path for `print_rows`, which then breaks no line at its spaces, so that it can be copied."""
    return str(text).replace(" ", _UNBROKEN)


def print_rows(out: Console, rows: Iterable[Row]) -> None:
    """Print labels in a column, and the text of each beside it, or below it where the terminal is narrow.

    Lines are broken between words only: a path or a hash stays whole, however long it is.
    """
    from rich.text import Text

    rows = [(printable(label), printable(text)) for label, text in rows]
    labels = _GAP + max((len(label) for label, _ in rows), default=0)
    below = out.width < labels + _LEAST_TEXT
    indent = "  " if below else " " * labels
    for label, text in rows:
        width = max(1, out.width - len(indent))
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
        starts = [indent] * len(lines)
        if not below:
            starts[0] = label.ljust(labels)
        elif label:
            starts, lines = ["", *starts], ["", *lines]
            starts[0] = label
        for start, line in zip(starts, lines, strict=True):
            row = Text.assemble((start, "dim"), line.replace(_UNBROKEN, " "))
            row.rstrip()
            out.print(row, soft_wrap=True)


def echo(text: str, colour: str, *, err: bool = False) -> None:
    """Print a line in a colour, but plainly where NO_COLOR is set (no-color.org) and on a terminal without colours."""
    import typer

    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    typer.echo(text if plain else typer.style(text, fg=colour), err=err)


def size_text(size: int) -> str:
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
