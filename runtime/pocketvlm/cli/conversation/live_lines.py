"""Lines at the end of a terminal's output that change in place, without flicker.

Only lines that differ are written, all in one write, and nothing is erased before something else stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.text import Text

# A terminal that knows synchronized output (mode 2026) draws all between these at once; others ignore them.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_ERASE_LINE_END, _ERASE_BELOW = "\x1b[K", "\x1b[J"


class LiveLines:
    """`write` writes to the terminal, `size` returns its (columns, rows). Lines may have escape sequences for colours.

    Each line must be narrower than the terminal.
    """

    def __init__(self, write: Callable[[str], None], size: Callable[[], tuple[int, int]]) -> None:
        self._write, self._size = write, size
        self._shown: list[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Replace the lines. Of more than the terminal has rows, the last are shown."""
        self._replace(list(lines[-(self._size()[1] - 1) :]))

    def keep(self, lines: Sequence[str]) -> None:
        """Replace the lines for the last time; what follows comes after them."""
        self._replace(list(lines))
        self._shown = []

    def _replace(self, lines: list[str]) -> None:
        columns, rows = self._size()
        same = 0
        for old, new in zip(self._shown, lines, strict=False):
            if old != new:
                break
            same += 1
        changed = self._shown[same:]
        if not changed and same == len(lines):
            return
        # After the terminal became narrower, a line takes several rows.
        up = min(rows - 1, sum(max(1, -(-_width(line) // columns)) for line in changed))
        written = [_BEGIN, f"\x1b[{up}A\r" if up else ""]
        written += [f"{line}{_ERASE_LINE_END}\n" for line in lines[same:]]
        written += [_ERASE_BELOW if len(changed) > len(lines) - same else "", _END]
        self._write("".join(written))
        self._shown = lines


def _width(line: str) -> int:
    return cell_len(Text.from_ansi(line).plain)
