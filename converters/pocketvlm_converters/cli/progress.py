"""Progress bars on standard error, one for each step that is told of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketvlm_converters.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    shown = Bars(*columns, console=Console(stderr=True))

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            shown.start()  # not before: without a bar, it leaves an empty line
            tasks[step] = shown.add_task(step, total=total)
        shown.update(tasks[step], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            shown.stop()
