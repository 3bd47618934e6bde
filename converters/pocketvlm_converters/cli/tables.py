"""Tables of the commands, and the sizes of models in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_GAP = 2  # characters between two columns of a table


@dataclass(frozen=True)
class Column:
    """A column of a table. If the table is too wide, the column with the highest `rank` is dropped first."""

    title: str
    cells: Sequence[str]
    rank: int
    right: bool = True

    @property
    def width(self) -> int:
        return max(map(len, (*self.title.split("\n"), *self.cells)))


def fitted_table(columns: Sequence[Column], width: int) -> Table:
    """Return a table of at most `width` characters. It always has the first column, and no cell is cut."""
    from rich.table import Table

    shown = list(columns)
    while len(shown) > 1 and sum(column.width for column in shown) + _GAP * (len(shown) - 1) > width:
        shown.remove(max(shown[1:], key=lambda column: column.rank))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP // 2), header_style="dim")
    for column in shown:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table


def rounded_size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
