"""Write the pages of a document into one file: Markdown, plain text or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pocketvlm.errors import PocketVLMError
from pocketvlm.reading.read_page import Format, PageText
from pocketvlm.system.atomic import new_file
from pocketvlm.system.option_names import with_flags

SUFFIXES: dict[Format, str] = {"markdown": ".md", "text": ".txt", "json": ".json"}


def write_document(path: Path, source: str, pages: Iterable[PageText], format: Format) -> None:
    """Write pages, one at a time; `source` names the document. The file appears when it is complete.

    Raises PocketVLMError where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            for piece in document_pieces(source, pages, format):
                file.write(piece.encode("utf-8", "replace"))
    except OSError as error:
        raise PocketVLMError(f"{path}: cannot be written: {error.strerror or error}") from None


def document_pieces(source: str, pages: Iterable[PageText], format: Format) -> Iterator[str]:
    """Yield the text of a document as its pages come. Errors name the options of the running command."""
    pages = (page if page.error is None else replace(page, error=with_flags(page.error)) for page in pages)
    if format == "json":
        return _json(source, pages)
    return (_text if format == "text" else _markdown)(pages)


def _page_markdown(page: PageText) -> str:
    notes = "".join(f"<!-- note: {note.replace('--', '- -')} -->\n\n" for note in page.notes)
    text = page.text if page.error is None else f"> Not read: {page.error}"
    return f"## {page.title}\n\n{notes}{text}".rstrip() + "\n"


def _markdown(pages: Iterable[PageText]) -> Iterator[str]:
    for index, page in enumerate(pages):
        yield ("\n" if index else "") + _page_markdown(page)


def _text(pages: Iterable[PageText]) -> Iterator[str]:
    for index, page in enumerate(pages):
        text = page.text if page.error is None else f"[not read: {page.error}]"
        yield ("\n" if index else "") + f"[{page.title}]\n\n{text}".rstrip() + "\n"


def _json(source: str, pages: Iterable[PageText]) -> Iterator[str]:
    """Yield an object with `file` and `pages`, a line for each page."""
    yield f'{{"file": {json.dumps(source, ensure_ascii=False)}, "pages": ['
    for index, page in enumerate(pages):
        entry = {"page": page.number, "label": page.label}
        entry |= {"data": json.loads(page.text)} if page.error is None else {"error": page.error}
        entry |= {"notes": page.notes} if page.notes else {}
        yield (",\n" if index else "\n") + json.dumps(entry, ensure_ascii=False)
    yield "\n]}\n"
