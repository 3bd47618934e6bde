"""What a conversation prints: answers on standard output, all else on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketvlm.cli.answer_report import err, note
from pocketvlm.cli.console import error_message
from pocketvlm.cli.conversation.plain_answer import PlainAnswer
from pocketvlm.cli.conversation.terminal import echo_file, moves_cursor
from pocketvlm.errors import PocketVLMError

if TYPE_CHECKING:
    from pocketvlm.cli.conversation.answer import MarkdownAnswer
    from pocketvlm.cli.conversation.state import Attached, Conversation

_WIDE = 60  # columns for two columns


class Screen:
    """`interactive`: a person types. `edits`: in a terminal that can move its cursor. `renders`: answers go to one."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self.edits = echo_file() is not None
        self.renders = self.edits and moves_cursor(sys.stdout)
        self.preview = self.renders
        self.timings = False
        self._console = Console(highlight=False)

    def say(self, text: str) -> None:
        """Print a dim line for a person; nothing where none types."""
        if self.interactive:
            note(text)

    def space(self) -> None:
        """Print an empty line before the next question of a person."""
        if self.edits:
            err.print()

    def print(self, text: str) -> None:
        """Print what a command was asked for."""
        err.print(escape(text))

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Print names with their explanations, in two columns where there is room."""
        grid = Table.grid(padding=(0, 2))
        for name, text in rows:
            grid.add_row(escape(name), f"[dim]{escape(text)}[/dim]")
            if err.width < _WIDE:
                err.print(f"{escape(name)} [dim]{escape(text)}[/dim]")
        if err.width >= _WIDE:
            err.print(grid)

    def error(self, error: PocketVLMError) -> None:
        err.print(f"[red]error:[/red] {escape(error_message(error))}")

    def answer(self, *, as_text: bool) -> MarkdownAnswer | PlainAnswer:
        """Return what shows an answer while it comes. `as_text`: it is not Markdown, such as JSON."""
        if self.renders and not as_text:
            from pocketvlm.cli.conversation.answer import MarkdownAnswer

            return MarkdownAnswer(self._console)
        return PlainAnswer(sys.stdout, clean=sys.stdout.isatty())

    def show_attached(self, attached: Attached, conversation: Conversation) -> None:
        """Print the line about a picture, and a small picture of what the model sees of it."""
        self.say(f"picture {attached.number}: {attached.description}")
        if not self.preview:
            return
        from pocketvlm.cli.conversation.preview import preview
        from pocketvlm.cli.conversation.seen_picture import seen_picture

        seen = seen_picture(attached.picture, conversation.vlm.info, attached.detail, conversation.max_image_tokens)
        if (shown := preview(seen, self._console)) is not None:
            self._console.file.write(shown)
            self._console.file.flush()
