"""Questions from a pipe, a file, or a terminal that cannot move its cursor: line by line."""

from __future__ import annotations

import sys
from contextlib import suppress

from pocketvlm.cli.conversation.typed_message import is_open

PROMPT = "> "
AGAIN = "press Ctrl-C again to end, or type /bye"


class PlainLines:
    def __init__(self, *, interactive: bool) -> None:
        self._interactive = interactive
        if interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  # line editing for input()

    def read(self) -> str:
        """Return what is typed next: a line, or several between three quotes.

        Raises EOFError at the end, and KeyboardInterrupt where Ctrl-C is pressed twice.
        """
        try:
            return self._text()
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            if not self._interactive:
                raise
            sys.stderr.write(f"{AGAIN}\n")
            return self._text()

    def _text(self) -> str:
        text = self._line(PROMPT)
        with suppress(EOFError):  # the end closes the quotes
            while is_open(text):
                text += "\n" + self._line("")
        return text

    def _line(self, prompt: str) -> str:
        if not self._interactive:
            return input()
        if sys.stdout.isatty():
            return input(prompt)
        sys.stderr.write(prompt)  # input() would write it to the output
        sys.stderr.flush()
        return input()
