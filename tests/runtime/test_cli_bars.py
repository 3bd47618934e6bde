"""A bar is drawn on terminals that can draw it again in its place."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pocketvlm.cli.progress_bars import progress_bar


@pytest.mark.parametrize(
    ("terminal", "term", "shown"), [(True, "xterm", True), (True, "dumb", False), (False, "", False)]
)
def test_where_a_bar_is_shown(terminal: bool, term: str, shown: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, _environ={"TERM": term})
    with progress_bar(console, count=True, left=True, stays=True) as bar:
        bar.advance(bar.add_task("pages", total=3))
    assert ("1/3" in file.getvalue()) == shown
    assert shown or not file.getvalue().strip()
