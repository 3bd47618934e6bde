"""Show an answer while it comes: Markdown on a terminal."""

from __future__ import annotations

import time

from rich.console import Console

from pocketvlm.cli.conversation.live_lines import LiveLines
from pocketvlm.cli.conversation.markdown import MarkdownRenderer
from pocketvlm.errors import printable

_PAUSE = 1 / 25  # seconds between two drawings, at least
_SHARE = 10  # a drawing may take a tenth of the time, the rest is the model's


class MarkdownAnswer:
    """Render the text as it comes. A block that is complete is written once; the last one changes in place."""

    def __init__(self, console: Console) -> None:
        self._renderer = MarkdownRenderer(console)
        self._console = console
        self._live = LiveLines(self._write, lambda: console.size)
        self._text = ""  # of the block that may still change
        self._has_blocks = False  # complete ones
        self._next = 0.0  # time of the next drawing

    def add(self, text: str) -> None:
        self._text += printable(text)
        if (began := time.monotonic()) >= self._next:
            self._draw()
            now = time.monotonic()
            self._next = now + max(_PAUSE, _SHARE * (now - began))

    def think(self, count: int) -> None:
        """Show that the model thinks, before its answer."""
        if (now := time.monotonic()) >= self._next and not self._text and not self._has_blocks:
            self._live.show([f"\x1b[2mthinking, {count} tokens\x1b[0m"])
            self._next = now + _PAUSE

    def end(self) -> None:
        self._draw(last=True)

    def drop(self) -> None:
        """End where there was no answer."""
        self._live.keep([])

    def _draw(self, *, last: bool = False) -> None:
        *complete, text = self._renderer.blocks(self._text)
        for block in complete:
            self._live.keep(self._lines(block))
            self._has_blocks = True
        self._text = text
        (self._live.keep if last else self._live.show)(self._lines(text, last=last))

    def _lines(self, block: str, *, last: bool = False) -> list[str]:
        # A line that fills the terminal's last column would leave its cursor in doubt.
        lines = self._renderer.lines(block, self._console.width - 1, alone=not self._has_blocks)
        if last and not lines and not self._has_blocks:
            return [""]  # an empty answer
        return ["", *lines] if lines and self._has_blocks else lines

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
