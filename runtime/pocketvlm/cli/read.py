"""`pocketvlm read`: documents into Markdown, plain text or JSON, page by page."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.markup import escape

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.command_options import (
    ManyRequests,
    MaxTokens,
    Memory,
    Model,
    Pages,
    Password,
    check_detail,
    expand_options,
)
from pocketvlm.cli.loading import load_arguments
from pocketvlm.cli.progress_bars import progress_bar
from pocketvlm.cli.response_format import response_format
from pocketvlm.cli.typed_path import typed_path
from pocketvlm.errors import RequestError, printable
from pocketvlm.system.option_names import with_flags
from pocketvlm.system.printable_console import PrintableConsole

if TYPE_CHECKING:
    from pocketvlm.errors import ImageError
    from pocketvlm.reading.inputs import Input
    from pocketvlm.reading.read_files import Counts, FileReader, Listener, Source
    from pocketvlm.reading.read_page import Format, PageText, ReadOptions

err = PrintableConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


@expand_options
def read(
    files: Annotated[
        list[str], typer.Argument(help="PDFs and pictures: paths, folders, or patterns such as 'scans/*.pdf'.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="File for one document, folder for several; without it, or with -, pages are printed.",
        ),
    ] = None,
    model: Model = None,
    *,
    options: ManyRequests,
    memory: Memory = None,
    pages: Pages = None,
    password: Password = None,
    format: Annotated[
        str | None, typer.Option(help="markdown or text; by default what the output's name says, or markdown.")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON Schema; each page becomes JSON that is valid by it.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about each page, instead of the preset's.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="How the model reads: a kind of model; by default that of the model's name.")
    ] = None,
    detail: Annotated[
        str | None, typer.Option(help="Resolution of pages: low, auto (150 dpi) or high; by default the preset's.")
    ] = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Read documents into Markdown, plain text or JSON. Run again, it continues where it was stopped."""
    from pocketvlm.documents.selection import PageSelection
    from pocketvlm.files.locate import locate
    from pocketvlm.reading.inputs import find_inputs, is_folder_output, output_names
    from pocketvlm.reading.progress_file import ProgressFile
    from pocketvlm.reading.read_files import FileReader, Source
    from pocketvlm.reading.read_page import ReadOptions
    from pocketvlm.reading.write_document import SUFFIXES

    if detail is not None:
        check_detail(detail)
    schema = None if json_schema is None else response_format(json_schema)["json_schema"]["schema"]
    if preset is not None:
        _check_preset(preset)
    output = None if output == "-" else output
    kind = _format(format, output, has_schema=schema is not None)
    how = ReadOptions(kind, prompt, preset, schema, cast(Any, detail), max_tokens)
    selection = None if pages is None else PageSelection.parse(pages, "--pages")
    source = Source(selection, password, max_pixels=options.max_pixels)
    names = [typed_path(name) for name in files]
    inputs = find_inputs(names)
    if output is None:
        target, options = load_arguments(model, replace(options, supervised=True), memory=memory)
        _print_documents(inputs, source, how, target, options)
        return
    alone = not is_folder_output(output, names, inputs)
    if alone:
        place = Path(output)
        outputs, folder, hidden = {place.name: inputs[0]}, place.parent, f".{place.name}.read.jsonl"
    else:
        outputs, folder, hidden = output_names(inputs, SUFFIXES[kind]), Path(output), ".read.jsonl"
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file, and a folder is needed", "--output")
    target, options = load_arguments(model, replace(options, supervised=True), memory=memory)
    fingerprint = locate(target, model=options.model, mmproj=options.mmproj, verify=False).fingerprint
    if alone:
        source.open(inputs[0].path)[0].close()  # what is wrong with it is said before a model is loaded
    folder.mkdir(parents=True, exist_ok=True)
    with ProgressFile(folder / hidden, {"model": fingerprint, **_described(how, pages)}) as progress:
        reader = FileReader(outputs, folder, source, progress, kind)
        reader.check_outputs()
        counts = reader.counts
        if reader.unfinished():
            counts = _read(reader, how, target, options, alone=alone)
        failed = bool(counts.failed_documents or counts.failed_pages)
        _print_counts(counts, output)
        progress.close(remove=alone and not failed)
    if failed:
        sys.exit(1)


def _print_documents(
    inputs: list[Input], source: Source, how: ReadOptions, target: str | None, options: LoadOptions
) -> None:
    """Print documents page by page, as they are read."""
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.errors import ImageError
    from pocketvlm.reading.read import read_in_order
    from pocketvlm.reading.read_page import PageReader
    from pocketvlm.reading.write_document import document_pieces

    failed = False

    def watched(pages: Iterator[PageText]) -> Iterator[PageText]:
        nonlocal failed
        for page in pages:
            failed = failed or page.error is not None
            yield page

    if len(inputs) == 1:
        source.open(inputs[0].path)[0].close()
    with VLM.load(target, options) as vlm:
        reader = PageReader(vlm, how)
        for index, file in enumerate(inputs):
            try:
                document, _ = source.open(file.path)
            except ImageError as error:
                failed = True
                err.print(f"not read: {escape(with_flags(error.message))}")
                continue
            if len(inputs) > 1 and how.format != "json":
                mark = "# " if how.format == "markdown" else ""
                _print(f"{chr(10) if index else ''}{mark}{file.name}\n\n")
            texts = watched(read_in_order(document, [*document.pages(source.pages)], reader, options.parallel))
            for piece in document_pieces(file.name, texts, how.format):
                _print(piece)
    if failed:
        sys.exit(1)


def _print(text: str) -> None:
    typer.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def _read(reader: FileReader, how: ReadOptions, target: str | None, options: LoadOptions, *, alone: bool) -> Counts:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.reading.read_page import PageReader

    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1

    with VLM.load(target, options) as vlm, _progress_bar(count) as listener:
        try:
            return reader.run(PageReader(vlm, how), options.parallel, listener, alone=alone)
        except KeyboardInterrupt:
            err.print(f"stopped after {done:,} pages. The same command continues.")
            sys.exit(130)


@contextmanager
def _progress_bar(count: Any) -> Iterator[Listener]:
    """Yield what shows the pages that are read, on a terminal, and prints what goes wrong."""
    from pocketvlm.reading.read_files import Listener

    with progress_bar(err, count=True, left=True, stays=True) as bar:
        task = bar.add_task("pages", total=0)
        total = 0
        printed: set[tuple[Input, str]] = set()

        def begins(file: Input, pages: int, read: int) -> None:
            nonlocal total
            total += pages
            bar.update(task, description=escape(printable(file.name)), total=total, advance=read)

        def page(file: Input, text: PageText) -> None:
            count()
            bar.advance(task)
            for note in text.notes:
                kind = note.removeprefix(text.label)
                if (file, kind) not in printed:  # small print is hard to see on every page or on none
                    err.print(f"{escape(file.name)}: {escape(_of_page(text, note))}")
                if kind != note:
                    printed.add((file, kind))
            if text.error is not None:
                err.print(f"not read: {escape(with_flags(text.error))}")  # which names file and page

        def fails(error: ImageError) -> None:
            err.print(f"not read: {escape(with_flags(error.message))}")

        yield Listener(begins, page, fails)


def _of_page(page: PageText, note: str) -> str:
    return note if note.startswith(page.label) else f"{page.title.lower()}: {note}"


def _format(format: str | None, output: str | None, *, has_schema: bool) -> Format:
    from pocketvlm.reading.read_page import Format

    if has_schema:
        if format not in (None, "json"):
            raise RequestError("a schema gives JSON; leave this out", "--format")
        return "json"
    if format == "json":
        raise RequestError("needs --json-schema, which says what the JSON is to hold", "--format")
    if format is not None and format not in get_args(Format):
        raise RequestError(f"must be markdown or text, not {format}", "--format")
    return cast("Format", format or ("text" if (output or "").lower().endswith(".txt") else "markdown"))


def _check_preset(name: str) -> None:
    from pocketvlm.reading.presets import presets

    if name not in presets():
        raise RequestError(f"{name} is unknown; known: {', '.join(sorted(presets()))}", "--preset")


def _described(how: ReadOptions, pages: str | None) -> dict[str, Any]:
    """Return what the pages of an output depend on, without the texts of documents or passwords."""
    schema = None if how.schema is None else json.dumps(how.schema, sort_keys=True)
    return {
        "format": how.format,
        "prompt": how.prompt,
        "preset": how.preset,
        "schema": schema and hashlib.sha256(schema.encode()).hexdigest()[:12],
        "detail": how.detail,
        "max_tokens": how.max_tokens,
        "pages": pages,
    }


def _print_counts(counts: Counts, output: str) -> None:
    said = [
        (counts.documents, f"{_number(counts.documents, 'document')} of {_number(counts.pages, 'page')}"),
        (counts.failed_pages, f"{_number(counts.failed_pages, 'page')} could not be read"),
        (counts.failed_documents, f"{_number(counts.failed_documents, 'document')} could not be opened"),
        (counts.unchanged, f"{_number(counts.unchanged, 'document')} read before"),
    ]
    err.print(f"{escape(output)}: {', '.join(text for count, text in said if count)}")


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
