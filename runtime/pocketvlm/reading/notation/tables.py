"""Tables: HTML's and OTSL's become pipe tables of Markdown, or HTML where cells span several rows or columns."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import islice, takewhile

_MOST_SPANNED = 200  # rows or columns that a cell may say it covers; a page has fewer
_WIDEST = 1000  # columns that cells may cover together
_INLINE = frozenset("b strong i em u s sup sub br code".split())  # kept within cells: Markdown may have them
_BREAKS = frozenset("p div li".split())
_COMMENT = re.compile(r"<!--(?:(?!-->).){0,1000}-->", re.DOTALL)
_DECLARATION = re.compile(r"<(?=[!?])")  # html.parser raises AssertionError for some
_HTML_TABLE = re.compile(r"<(/?)table\b[^>]*>", re.IGNORECASE)

# ---- OTSL: https://arxiv.org/abs/2305.03393; the names of its tokens are those of docling's DocTags

OTSL_CELLS = ("fcel", "ecel", "lcel", "ucel", "xcel", "ched", "rhed", "srow")
_CELL = f"<(?:{'|'.join(OTSL_CELLS)})>"
_BLANK_LINE = r"\n[ \t]*\n"  # ends a row whose end is missing
_OTSL_ROW = rf"(?:{_CELL}(?:(?!{_CELL}|<nl>|</otsl>|{_BLANK_LINE}).)*)+(?:<nl>|(?=</otsl>|{_BLANK_LINE})|\Z)"
_OTSL_TABLE = re.compile(rf"(?:<otsl>\s*)?(?:{_OTSL_ROW}\s*)+(?:</otsl>)?", re.DOTALL)
_OTSL_TOKEN = re.compile(rf"<({'|'.join((*OTSL_CELLS, 'nl'))})>([^<]*(?:<(?!{'|'.join((*OTSL_CELLS, 'nl'))})[^<]*)*)")


@dataclass(frozen=True)
class Cell:
    """A cell and how many rows and columns it covers. `text` is inline Markdown or HTML, as the table's source had."""

    text: str
    header: bool = False
    rows: int = 1
    columns: int = 1


@dataclass(frozen=True)
class Table:
    """Rows of cells; a cell that spans stands only where it begins. `escaped`: texts are HTML already."""

    rows: tuple[tuple[Cell, ...], ...]
    escaped: bool = False

    def markdown(self) -> str:
        """Return a pipe table, or HTML where cells span: Markdown has no notation for that."""
        if not self.rows:
            return ""
        if any((cell.rows, cell.columns) != (1, 1) for row in self.rows for cell in row):
            return self._html()
        width = max(len(row) for row in self.rows)
        lines = [_pipes([_in_pipes(cell.text) for cell in row], width) for row in self.rows]
        return "\n".join([lines[0], _pipes(["---"] * width, width), *lines[1:]])

    def plain(self) -> str:
        """Return lines with tabs between the columns."""
        return "\n".join(
            "\t".join(plain_inline(cell.text, escaped=self.escaped) if cell else "" for cell in row)
            for row in self._grid()
        )

    def _html(self) -> str:
        lines = ["<table>"]
        for row in self.rows:
            cells = []
            for cell in row:
                name = "th" if cell.header else "td"
                spans = "".join(
                    f' {key}="{count}"'
                    for key, count in (("rowspan", cell.rows), ("colspan", cell.columns))
                    if count > 1
                )
                text = cell.text if self.escaped else html.escape(cell.text, quote=False)
                cells.append(f"<{name}{spans}>{' '.join(text.split())}</{name}>")
            lines.append(f"<tr>{''.join(cells)}</tr>")
        return "\n".join([*lines, "</table>"])

    def _grid(self) -> list[list[Cell | None]]:
        """Return all positions; None where a cell from the left or from above covers one."""
        grid: list[list[Cell | None]] = []
        left: list[int] = []  # how many rows each column is still covered
        for row in self.rows:
            places: list[Cell | None] = []
            for cell in row:
                places += _covered(left, len(places))
                x = len(places)
                end = max(x + 1, min(x + cell.columns, _WIDEST))
                left += [0] * (end - len(left))
                left[x:end] = [max(count, cell.rows) for count in left[x:end]]
                places.append(cell)
            grid.append(places + _covered(left, len(places)))
            left = [max(count - 1, 0) for count in left]
        return grid


def _covered(left: Sequence[int], x: int) -> list[Cell | None]:
    """Return a None for each column from `x` to the next one that is not covered."""
    return [None] * len([*takewhile(bool, islice(left, x, None))])


def otsl_table(source: str) -> Table:
    """Parse the cells of one table in OTSL."""
    grid: list[list[tuple[str, str]]] = [[]]
    for token, text in _OTSL_TOKEN.findall(source.replace("</otsl>", "")):
        if token == "nl":
            grid.append([])
        else:
            grid[-1].append((token, text.strip()))
    grid = [row for row in grid if row]

    def kind(y: int, x: int) -> str:
        return grid[y][x][0] if y < len(grid) and x < len(grid[y]) else ""

    rows = []
    for y, row in enumerate(grid):
        cells = []
        for x, (token, text) in enumerate(row):
            has_left = x > 0 and (y, x) != (0, 0)
            if (token == "lcel" and has_left) or (token in ("ucel", "xcel") and y > 0):
                continue
            columns = next(n for n in range(1, len(row) + 1) if kind(y, x + n) != "lcel")
            height = next(n for n in range(1, len(grid) + 1) if kind(y + n, x) != "ucel")
            cells.append(Cell(text, token in ("ched", "rhed", "srow"), height, columns))
        rows.append(tuple(cells))
    return Table(tuple(rows))


def with_otsl_tables(text: str) -> str:
    """Replace the tables in OTSL by Markdown's."""
    return _OTSL_TABLE.sub(lambda match: f"\n\n{otsl_table(match[0]).markdown()}\n\n", text)


# ---- HTML


def with_html_tables(text: str, *, plain: bool = False) -> str:
    """Replace the tables in HTML by Markdown's; `plain`: by lines with tabs. A table that is cut off counts, too."""
    parts: list[str] = []
    end = 0
    for start, stop in _html_tables(text):
        parser = _TableParser()
        parser.feed(_DECLARATION.sub("&lt;", _COMMENT.sub("", text[start:stop])))
        parser.close()
        table = Table(parser.table(), escaped=True)
        parts += [text[end:start], f"\n\n{table.plain() if plain else table.markdown()}\n\n"]
        end = stop
    return "".join([*parts, text[end:]])


def plain_inline(text: str, *, escaped: bool = False) -> str:
    """Return the text of a cell without line breaks; `escaped`: it is HTML."""
    if escaped:
        text = html.unescape(re.sub(r"<[^<>]*>", " ", text))
    return " ".join(text.split())


def _html_tables(text: str) -> Iterator[tuple[int, int]]:
    """Yield where tables begin and end, the outer ones."""
    depth = start = 0
    for tag in _HTML_TABLE.finditer(text):
        if not tag[1]:
            start = start if depth else tag.start()
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                yield start, tag.end()
    if depth:
        yield start, len(text)


class _TableParser(HTMLParser):
    """Collects the cells of one table. A table within a cell becomes its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self._rows: list[list[Cell]] = []
        self._texts: list[str] | None = None  # of the open cell
        self._cell = Cell("")
        self._depth = 0

    def table(self) -> tuple[tuple[Cell, ...], ...]:
        self._end_cell()
        return tuple(tuple(row) for row in self._rows if row)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._depth += 1
        elif self._depth > 1 and tag in ("tr", "td", "th"):
            self._add(" ")
        elif tag == "tr":
            self._end_cell()
            self._rows.append([])
        elif tag in ("td", "th"):
            self._end_cell()
            spans = {name: _span(value) for name, value in attrs}
            self._cell = Cell("", tag == "th", spans.get("rowspan", 1), spans.get("colspan", 1))
            self._texts = []
        elif tag in _INLINE:
            self._add(f"<{tag}>")
        elif tag in _BREAKS:
            self._add(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._depth -= 1
        elif self._depth <= 1 and tag in ("tr", "td", "th"):
            self._end_cell()
        elif tag in _INLINE and tag != "br":
            self._add(f"</{tag}>")
        elif tag in _BREAKS:
            self._add(" ")

    def handle_data(self, data: str) -> None:
        self._add(data)

    def handle_entityref(self, name: str) -> None:
        self._add(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._add(f"&#{name};")

    def _add(self, text: str) -> None:
        if self._texts is not None:
            self._texts.append(text)

    def _end_cell(self) -> None:
        if self._texts is None:
            return
        text = " ".join("".join(self._texts).split())
        if not self._rows:
            self._rows.append([])
        self._rows[-1].append(Cell(text, self._cell.header, self._cell.rows, self._cell.columns))
        self._texts = None


def _span(value: str | None) -> int:
    digits = (value or "").strip()
    return min(max(int(digits), 1), _MOST_SPANNED) if digits.isdecimal() and len(digits) < 10 else 1


def _in_pipes(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _pipes(texts: Sequence[str], width: int) -> str:
    return "| " + " | ".join([*texts, *[""] * (width - len(texts))]) + " |"
