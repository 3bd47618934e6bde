"""`pocketvlm bench`: how fast a model is on this machine."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.command_options import Fields, ModelArgument, check_detail, expand_options
from pocketvlm.cli.loading import load
from pocketvlm.cli.progress_bars import progress_bar
from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.system.atomic import new_file
from pocketvlm.system.printable_console import PrintableConsole

if TYPE_CHECKING:
    from pocketvlm.bench.measure import Case, Report, Spread, Subject

err = PrintableConsole(stderr=True)
_ROWS = (
    ("first", "a new picture"),
    ("second", "next question about it"),
    ("again", "the picture in a new chat"),
    ("moved", "the picture after other text"),
)


@expand_options
def bench(
    model: ModelArgument = None,
    *,
    options: Annotated[
        LoadOptions, Fields("mmproj", "vision", "device", "context_size", "threads", "cache_type", "max_pixels")
    ],
    picture: Annotated[
        list[str] | None, typer.Option("-i", "--picture", metavar="PICTURE...", help="Pictures to ask about.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Instead of a picture, the WIDTHxHEIGHT of a drawn one; may be repeated. [640x480]"),
    ] = None,
    detail: Annotated[
        list[str] | None, typer.Option(help="Resolution: low, auto or high; may be repeated. [auto]")
    ] = None,
    repeat: Annotated[int, typer.Option(help="Rounds; the medians are printed.")] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens of the answer that is timed, at least 2.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the result to this PNG file.")] = None,
) -> None:
    """Measure vision encoder, prefill, decode, and the time to first token: new picture, next question, new chat."""
    details = detail or ["auto"]
    check_detail(*details)
    for name, value, least in (("--repeat", repeat, 1), ("--tokens", tokens, 2)):
        if value < least:
            raise RequestError(f"must be at least {least}", name)
    subjects = _subjects(picture or [], size or [], options.max_pixels)
    if plot is not None:
        _check_target(plot)
    from pocketvlm.bench.measure import STEPS, run
    from pocketvlm.system.machine import processor

    with progress_bar(err) as bar:
        task = bar.add_task("loading", total=None)
        start = time.perf_counter()
        with load(model, options) as vlm:
            load_ms = 1000 * (time.perf_counter() - start)
            bar.update(task, description="measuring", total=len(subjects) * len(details) * repeat * len(STEPS))
            bar.advance(task, -1)  # a step is reported when it begins
            report = run(vlm, subjects, details, repeat=repeat, tokens=tokens, step=lambda: bar.advance(task))  # type: ignore[arg-type]  # checked above
    machine = f"{processor()}, {report.threads} threads"
    if plot is not None:
        _write(plot, report, machine)
    if as_json:
        typer.echo(json.dumps({"machine": machine, "load_ms": load_ms, **asdict(report)}, indent=2))
    else:
        _show(report, machine, load_ms)


def _subjects(pictures: list[str], sizes: list[str], most: int) -> list[Subject]:
    from pocketvlm.bench.measure import Subject, photo
    from pocketvlm.messages import ImagePart
    from pocketvlm.pictures.images import read_picture

    if pictures and sizes:
        raise RequestError("cannot be combined with --picture; use one of them", "--size")
    if pictures:
        files = [
            (name, read_picture(ImagePart(type="image", path=name), "--picture", max_pixels=most)) for name in pictures
        ]
        return [Subject(Path(name).name, file.pixels) for name, file in files]
    subjects = []
    for size in sizes or ["640x480"]:
        match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", size)
        width, height = map(int, match.groups()) if match else (0, 0)
        if not 0 < width * height <= most:
            raise RequestError(f"must be WIDTHxHEIGHT of at most {most:,} pixels, not {size}", "--size")
        subjects.append(photo(width, height))
    return subjects


def _check_target(path: Path) -> None:
    """Refuse a file that cannot be written, before minutes are spent on measuring."""
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path}: the name must end in .png", "--plot")
    if not path.parent.is_dir():
        raise RequestError(f"{path}: the folder {path.parent} does not exist", "--plot")
    if path.is_dir():
        raise RequestError(f"{path}: is a folder; give a file", "--plot")


def _write(path: Path, report: Report, machine: str) -> None:
    from pocketvlm.bench.picture import draw

    try:
        with new_file(path) as file:
            draw(report, machine).save(file, "PNG")
    except OSError as error:
        raise PocketVLMError(f"{path}: cannot be written: {error.strerror or error}") from None


def _show(report: Report, machine: str, load_ms: float) -> None:
    out = PrintableConsole(highlight=False)
    parts = f"encoder {report.vision}, weights {report.layout}, KV cache {report.cache_type}"
    out.print(f"[bold]{escape(report.model)}[/bold], {parts}, loaded in {load_ms / 1000:.2f} s")
    out.print(f"[dim]{escape(machine)}; median of {report.repeat}, lowest to highest[/dim]")
    for case in report.cases:
        table = Table(box=None, pad_edge=False, title_justify="left", title=_title(case), title_style="")
        table.add_column("time to first token", min_width=30)
        table.add_column("", justify="right")
        table.add_column("", style="dim")
        for name, title in _ROWS:
            table.add_row(title, *_cells(getattr(case, name), "ms"))
        table.add_section()
        table.add_row(f"encoder, {case.tiles} tile{'s' * (case.tiles != 1)}", *_cells(case.encode, "ms"))
        table.add_row("prefill of a text", *_cells(case.prefill, "tokens/s"))
        table.add_row("decode", *_cells(case.decode, "tokens/s"))
        if case.threads.low < report.threads:
            table.add_row("  while other programs ran, on", *_cells(case.threads, "threads"))
        out.print()
        out.print(table)
    if report.memory is not None:
        own, peak = report.memory.anonymous / 1e6, report.memory.peak / 1e6
        out.print(f"\n[dim]memory {own:,.0f} MB of its own; peak with mapped files {peak:,.0f} MB[/dim]")


def _title(case: Case) -> str:
    used = "" if case.used_size == case.size else " seen at {}x{}".format(*case.used_size)
    size = "{}x{}".format(*case.size)
    name = size if case.picture == size else f"{escape(case.picture)}, {size}"
    return f"{name}{used}, detail {case.detail}: {case.image_tokens:,} tokens"


def _cells(spread: Spread, unit: str) -> tuple[str, str]:
    digits = 0 if spread.median >= 100 else 1

    median, low, high = (f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return f"{median} {unit}", f"{low} to {high}"
