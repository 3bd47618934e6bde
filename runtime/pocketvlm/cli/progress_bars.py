"""Progress bars on standard error: their columns, and where one is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def shows_bars(console: Console) -> bool:
    """Return whether a bar can be drawn again in its place."""
    return console.is_terminal and not console.is_dumb_terminal


def progress_bar(
    console: Console, text: str = "{task.description}", *, count: bool = False, left: bool = False, stays: bool = False
) -> Progress:
    """Return a bar after `text`, then how many of all if `count`, the time, and the time `left`.

    It shows nothing where there is no room for bars, and is gone at the end, unless it `stays`.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[ProgressColumn] = [TextColumn(text), BarColumn()]
    if count:
        columns.append(MofNCompleteColumn())
    columns.append(TimeElapsedColumn())
    if left:
        columns.append(TimeRemainingColumn())
    return Progress(*columns, console=console, transient=not stays, disable=not shows_bars(console))
