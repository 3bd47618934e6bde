"""Notice that an answer repeats itself without end, while it comes. Pure.

Models that read documents fall into loops: a line, a row of a table or a whole page again and again, also with numbers
that count up. A page may repeat itself, too: empty rows of a form, dotted lines of a table of contents, a sheet of
equal labels. So what counts is how long a text has repeated, not that it does.
"""

from __future__ import annotations

import re

_STEP = 64  # characters between two checks
_KEPT = 24_000  # characters that are looked at, a few dense pages
_NEEDLE = 256  # characters at the end of the text that are looked for before it; a loop has twice as many
_TRIES = 6  # earlier places that are tried as periods
_ROW_END = re.compile(r"\n|</tr>|<nl>")
_TAG = re.compile(r"<[^<>\n]{1,40}>")
_LETTER = re.compile(r"[^\W\d_]")
_DIGITS = re.compile(r"\d+")

# How long a repetition must be, in characters and in periods, to be a loop.
_WITHIN_A_LINE = (600, 8)  # dotted leaders and rows of empty cells have less
_OF_LINES = (2500, 5)  # with words; 30 labels of 60 characters have less
_OF_PAGES = (2500, 3)  # periods of 1,000 characters and more
_PAGE = 1000
_WITHOUT_WORDS = 150  # periods; a page has no place for as many rows
_COUNTING = (3000, 200)  # periods that differ in numbers, as the rows of every table do
_WORDS = 10  # letters of a period that has words


class RepetitionGuard:
    """Gets an answer piece by piece. Once `repeats`, the answer can be cut to `text`."""

    def __init__(self) -> None:
        self._text = ""
        self._tail = _Tail()
        self._counting_tail = _Tail()  # with every number as a 0
        self._checked = 0
        self.repeats = False

    @property
    def text(self) -> str:
        """The answer so far; once it `repeats`, up to the end of what is repeated."""
        return self._text

    def push(self, piece: str) -> bool:
        """Add a piece, and return whether the answer repeats itself without end."""
        if self.repeats:
            return True
        self._text += piece
        self._tail.add(piece)
        self._counting_tail.add_counting(piece)
        if len(self._text) < self._checked + _STEP:
            return False
        self._checked = len(self._text)
        period = self._tail.endless_period() or self._counting_tail.endless_period(counting=True)
        if period:
            self.repeats = True
            self._text = _cut(self._text, period)
        return self.repeats


class _Tail:
    """The end of a text."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, piece: str) -> None:
        self._text += piece
        if len(self._text) > 2 * _KEPT:
            self._text = self._text[-_KEPT:]

    def add_counting(self, piece: str) -> None:
        piece = _DIGITS.sub("0", piece)
        if self._text.endswith("0") and piece.startswith("0"):
            piece = piece[1:]
        self.add(piece)

    def endless_period(self, *, counting: bool = False) -> str:
        """Return what the text repeats at its end, long enough to be a loop; "" where it does not."""
        text = self._text[-_KEPT:]
        needle, end = text[-_NEEDLE:], len(text) - 1
        for _ in range(_TRIES):
            place = text.rfind(needle, 0, end)
            if place < 0:
                break
            length = len(text) - _NEEDLE - place
            least = _least(text[-length:], counting=counting)
            if least <= len(text) and text[length - least :] == text[-least:-length]:
                return text[-length:]
            end = place + _NEEDLE - 1
        return ""


def _least(period: str, *, counting: bool) -> int:
    """Return the characters that this period must fill to be a loop; they are at least two periods."""
    size = len(period)
    if counting:
        characters, times = _COUNTING
        return max(characters, times * size)
    if not _ROW_END.search(period):
        characters, times = _WITHIN_A_LINE
    elif len(_LETTER.findall(_TAG.sub("", period))) < _WORDS:
        return _WITHOUT_WORDS * size
    else:
        characters, times = _OF_PAGES if size >= _PAGE else _OF_LINES
    return max(characters, times * size)


def _cut(text: str, period: str) -> str:
    """Return the text up to the end of the first period of the repetition at its end."""
    size = len(period)
    counting = not text.endswith(period)
    if counting:  # lengths differ: keep what a page could have
        kept = text[: -_COUNTING[0]]
        return kept[: max(kept.rfind("\n"), 0)] or kept
    start = len(text) - size
    while start >= size and text[start - size : start] == text[start : start + size]:
        start -= size
    while start > 0 and text[start - 1] == text[start + size - 1]:
        start -= 1
    row_end = _ROW_END.search(text, start + size, start + 2 * size)  # the period may begin within a line
    return text[: row_end.end() if row_end else start + size]
