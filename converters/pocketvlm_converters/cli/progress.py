"""Progress bars on standard error, one for each step, if it is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketvlm_converters.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """Yield a Progress that shows a bar for each step it is called with."""
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as ProgressBars

    from pocketvlm.system.printable_console import PrintableConsole

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    console = PrintableConsole(stderr=True)
    display = ProgressBars(*columns, console=console, disable=not console.is_terminal or console.is_dumb_terminal)

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            display.start()  # not before the first step: without a bar, it leaves an empty line
            tasks[step] = display.add_task(step, total=total)
        display.update(tasks[step], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            display.stop()
