"""Print texts from models, files and names on a terminal, which must not obey them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pocketvlm.errors import printable


class PrintableConsole(Console):
    """A console that leaves control characters out of the texts it prints on a terminal; rich leaves ESC in."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text) if self.is_terminal else text, **options)
