"""What commands print for people: control characters in names and texts do not act on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from pocketvlm.system.printable_console import PrintableConsole
from pocketvlm.system.terminal import print_rows

TITLE = "a\x1b]0;title\x07\x9b31mb"


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_left_out_on_a_terminal(terminal: bool) -> None:
    file = io.StringIO()
    console = PrintableConsole(file=file, force_terminal=terminal, color_system=None, markup=False)
    table = Table.grid()
    table.add_row(TITLE)
    console.print(TITLE)
    console.print(table)
    shown = "a]0;title31mb" if terminal else TITLE.replace("\x07", "")  # which rich leaves out
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [shown, shown]


def test_rows_have_no_control_characters() -> None:
    file = io.StringIO()
    print_rows(PrintableConsole(file=file, color_system=None), [("name", TITLE), (TITLE, "text")])
    assert "a]0;title31mb" in file.getvalue() and file.getvalue().replace("\n", "").isprintable()
