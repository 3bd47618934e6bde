"""Answers that are Markdown already, more or less, and the plain text of Markdown."""

from __future__ import annotations

import html
import re

from pocketvlm.reading.notation.doctags import picture_mark
from pocketvlm.reading.notation.tables import with_html_tables, with_otsl_tables

_WRAPPED = re.compile(r"\s*(`{3,})(?:markdown|md|html|text)?[ \t]*\n(.*?)\n?\s*(?:\1\s*)?", re.DOTALL)
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
# A block's label and place. A later form has both between the second pair of tags.
_PLACED = re.compile(
    r"(?:<\|ref\|>(?P<label>[^<]{0,200})<\|/ref\|>)?<\|det\|>(?P<place>[^<]{0,2000})<\|/det\|>[ \t]*\n?"
)
_PICTURES = ("image", "figure")
_CENTRED = re.compile(r"</?center>")
_CONTROL = re.compile(r"<\|(?:/?ref|/?det|/?grounding|(?:box|ref|md)_(?:start|end)|rotate_\w+|txt_contd)\|>")


def markdown(text: str) -> str:
    """Return a page that a model wrote as Markdown: out of its code fence, with pipe tables in place of HTML's."""
    if (match := _WRAPPED.fullmatch(text)) and match[1] not in match[2]:
        text = match[2]
    return _tidy(with_html_tables(text))


def otsl(text: str) -> str:
    """Return a page with tables in OTSL."""
    return markdown(with_otsl_tables(text))


def grounded(text: str) -> str:
    """Return a page whose blocks are preceded by their label and place, `<|ref|>title<|/ref|><|det|>...<|/det|>`."""

    def replaced(match: re.Match[str]) -> str:
        label = (match["label"] or match["place"].partition("[")[0]).strip()
        return f"{picture_mark()}\n" if label in _PICTURES else ""

    return otsl(_CONTROL.sub("", _CENTRED.sub("", _PLACED.sub(replaced, text))))


def _tidy(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", text.replace("\r\n", "\n")).strip()


# ---- plain text

_COMMENT = re.compile(r"<!--(?:(?!-->).){0,1000}-->\n?", re.DOTALL)
_FENCE = re.compile(r"^ *(?:`{3,}|~{3,})[^\n`]*$\n?", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6} +", re.MULTILINE)
_STRONG = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_PICTURE = re.compile(r"!\[([^\[\]\n]{0,300})\]\([^()\n]{0,2000}\)")
_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\([^()\n]{0,2000}\)")
_PIPE_TABLE = re.compile(r"^ *\|.*\| *\n *\|(?: *:?-+:? *\|)+ *$(?:\n *\|.*\| *$)*", re.MULTILINE)
_INLINE_TAG = re.compile(r"</?(?:b|strong|i|em|u|s|sup|sub|code|center)>", re.IGNORECASE)
_BREAK = re.compile(r"<br */?>", re.IGNORECASE)


def plain_text(source: str) -> str:
    """Return the text of Markdown without its marks; columns of tables are separated by tabs. Formulas stay."""
    text = with_html_tables(_COMMENT.sub("", source), plain=True)
    text = _PIPE_TABLE.sub(lambda match: _tabs(match[0]), text)
    text = _HEADING.sub("", _FENCE.sub("", text))
    text = _LINK.sub(r"\1", _PICTURE.sub(r"\1", _STRONG.sub(r"\2", text)))
    return _tidy(html.unescape(_INLINE_TAG.sub("", _BREAK.sub("\n", text))))


def _tabs(table: str) -> str:
    lines = table.splitlines()
    return "\n".join(
        "\t".join(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1]))
        for line in (lines[0], *lines[2:])
    )
