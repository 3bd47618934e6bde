"""Show an answer while it comes, as the text itself."""

from __future__ import annotations

from typing import TextIO

from pocketvlm.errors import printable


class PlainAnswer:
    """Write the text as it comes. With `clean`, as on a terminal, without control characters."""

    def __init__(self, file: TextIO, *, clean: bool) -> None:
        self._file, self._clean = file, clean

    def add(self, text: str) -> None:
        self._file.write(printable(text) if self._clean else text)
        self._file.flush()

    def think(self, count: int) -> None:
        """Show nothing of `count` thoughts."""

    def end(self) -> None:
        self._file.write("\n")
        self._file.flush()

    def drop(self) -> None:
        """End where there was no answer."""
