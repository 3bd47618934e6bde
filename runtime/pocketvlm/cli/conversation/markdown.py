"""Markdown as models write it, for a terminal: nothing of an answer is lost, and lines stay lines."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

# HTML is text, or rich would drop it. Indented text is not code, and a line under text is not part of a heading:
# models transcribe.
_PARSER = MarkdownIt("commonmark").enable(["strikethrough", "table"])
_PARSER.disable(["code", "lheading", "reference", "html_block", "html_inline"])
# For an answer of one line, in which "42." is not a list.
_LINE_PARSER = MarkdownIt("zero").enable(["backticks", "emphasis", "escape", "strikethrough", "link"])
_EMPTY_ITEM = re.compile(r"\s*(?:\d+[.)]|[-*+])\s*")  # of a list, which rich does not print
# The terminal's own colours, which can be read on light and dark ones.
_THEME = Theme(
    {
        "markdown.code": "cyan",
        "markdown.code_block": "cyan",
        "markdown.block_quote": "none",
        "markdown.hr": "dim",
        "markdown.item.bullet": "none",
        "markdown.item.number": "none",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold",
        "markdown.h3": "bold",
        "markdown.h4": "bold italic",
        "markdown.h5": "italic",
        "markdown.h6": "italic",
        "markdown.h7": "italic",
        "markdown.link": "none",
        "markdown.link_url": "underline",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
    }
)


class _Heading(Heading):
    """A heading at the left, without a box."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Code(CodeBlock):
    """Code on the terminal's own background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(
            code, self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True, padding=(0, 2)
        )


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)  # the address is shown: what a model links to is not trusted
        self.parsed = tokens


class MarkdownRenderer:
    """Renders blocks of Markdown to lines with escape sequences."""

    def __init__(self, like: Console) -> None:
        """`like` is the console whose colours are used."""
        self._like = like
        self._buffer = io.StringIO()
        self._console = Console(
            file=self._buffer,
            force_terminal=True,
            color_system=like.color_system,  # type: ignore[arg-type]  # its own property is wider than its argument
            no_color=like.no_color,
            highlight=False,
            legacy_windows=False,
            theme=_THEME,
        )

    def blocks(self, text: str) -> list[str]:
        """Split a text at the borders of its blocks. All but the last are complete, whatever follows."""
        starts = [
            token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.map and token.nesting >= 0
        ]
        lines = text.split("\n")
        ends = [*starts[1:], len(lines)]
        starts[:1] = [0]
        return ["\n".join(lines[start:end]) for start, end in zip(starts, ends, strict=True)] if starts else [text]

    def lines(self, text: str, width: int, *, alone: bool) -> list[str]:
        """Render one block at most `width` columns wide. `alone`: it is the whole answer."""
        one_line = (
            (alone or _EMPTY_ITEM.fullmatch(text))
            and "\n" not in text.strip()
            and not text.lstrip().startswith(("#", "```"))
        )
        tokens = (_LINE_PARSER if one_line else _PARSER).parse(text.strip("\n"))
        tokens = [*_with_items(tokens)]
        for token in tokens:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
        self._console.width = max(1, width)
        self._console.print(_Markdown(tokens))
        rendered = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        lines = [line.rstrip(" ") for line in rendered.split("\n")]  # a selection with the mouse would copy spaces
        while lines and not Text.from_ansi(lines[0]).plain.strip():
            lines.pop(0)
        while lines and not Text.from_ansi(lines[-1]).plain.strip():
            lines.pop()
        return lines


def _with_items(tokens: list[Token]) -> Iterator[Token]:
    """Yield tokens with a text in each item of a list; rich prints no number of an empty one."""
    for token, after in pairwise([*tokens, None]):
        if token is None:
            return
        yield token
        if token.type == "list_item_open" and after is not None and after.type == "list_item_close":
            yield Token("paragraph_open", "p", 1)
            yield Token("inline", "", 0, children=[Token("text", "", 0, content=" ")])
            yield Token("paragraph_close", "p", -1)
