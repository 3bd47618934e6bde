"""`pocketvlm bench`: how fast a model is here."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketvlm.cli.loading import Device, Encoder, Mmproj, Threads, check_detail, load
from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.system.atomic import new_file

if TYPE_CHECKING:
    from pocketvlm.bench.measure import Case, Report, Spread, Subject

err = Console(stderr=True)
_ROWS = (
    ("first", "first sight of the picture"),
    ("second", "next question about it"),
    ("again", "the picture in a new chat"),
    ("moved", "the picture after other text"),
)


def bench(
    model: Annotated[
        str | None, typer.Argument(help="A bundle, a .gguf or the name of a pulled model; iota without one.")
    ] = None,
    mmproj: Mmproj = None,
    picture: Annotated[
        list[str] | None, typer.Option("-i", "--picture", help="A picture to ask about; may be repeated.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Instead, WIDTHxHEIGHT of a drawn one; may be repeated. [640x480]")
    ] = None,
    detail: Annotated[list[str] | None, typer.Option(help="low, auto or high; may be repeated. [auto]")] = None,
    repeat: Annotated[int, typer.Option(help="Rounds; the medians of all are shown.")] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens of the answer whose speed is taken, at least 2.")] = 64,
    vision: Encoder = "auto",
    device: Device = "auto",
    ctx_size: Annotated[
        int | None, typer.Option(help="Context in tokens; the model's own up to 8192 by default.")
    ] = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the result, as a PNG file.")] = None,
) -> None:
    """Measure encoder, prefill, decode, and the time to the first token: new picture, next question, new chat."""
    details = detail or ["auto"]
    check_detail(*details)
    for name, value, least in (("--repeat", repeat, 1), ("--tokens", tokens, 2)):
        if value < least:
            raise RequestError(f"must be at least {least}", name)
    subjects = _subjects(picture or [], size or [])
    if plot is not None:
        _check_target(plot)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from pocketvlm.bench.measure import STEPS, measure
    from pocketvlm.system.machine import physical_cores, processor

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("loading", total=None)
        began = time.perf_counter()
        with load(model, mmproj, context_size=ctx_size, threads=threads, vision=vision, device=device) as vlm:
            load_ms = 1000 * (time.perf_counter() - began)
            bar.update(task, description="measuring", total=len(subjects) * len(details) * repeat * len(STEPS))
            bar.advance(task, -1)  # a step is told as it begins
            report = measure(vlm, subjects, details, repeat=repeat, tokens=tokens, step=lambda: bar.advance(task))  # type: ignore[arg-type]  # checked above
    machine = f"{processor()}, {threads or physical_cores()} threads"
    if plot is not None:
        _write(plot, report, machine)
    if as_json:
        typer.echo(json.dumps({"machine": machine, "load_ms": load_ms, **asdict(report)}, indent=2))
    else:
        _show(report, machine, load_ms)


def _subjects(pictures: list[str], sizes: list[str]) -> list[Subject]:
    from pocketvlm.bench.measure import Subject, photo
    from pocketvlm.messages import ImagePart
    from pocketvlm.pictures.images import MAX_PIXELS, read_picture

    if pictures and sizes:
        raise RequestError("goes without --picture", "--size")
    if pictures:
        read = [(name, read_picture(ImagePart(type="image", path=name), "--picture")) for name in pictures]
        return [Subject(Path(name).name, found.pixels) for name, found in read]
    subjects = []
    for given in sizes or ["640x480"]:
        match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", given)
        width, height = map(int, match.groups()) if match else (0, 0)
        if not 0 < width * height <= MAX_PIXELS:
            raise RequestError(f"must be WIDTHxHEIGHT of at most {MAX_PIXELS:,} pixels, not {given}", "--size")
        subjects.append(photo(width, height))
    return subjects


def _check_target(path: Path) -> None:
    """Before minutes are spent on measuring."""
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path}: the name must end in .png", "--plot")
    if not path.parent.is_dir():
        raise RequestError(f"{path}: there is no such folder", "--plot")
    if path.is_dir():
        raise RequestError(f"{path}: is a folder", "--plot")


def _write(path: Path, report: Report, machine: str) -> None:
    from pocketvlm.bench.picture import draw

    try:
        with new_file(path) as file:
            draw(report, machine).save(file, "PNG")
    except OSError as error:
        raise PocketVLMError(f"{path}: cannot be written: {error.strerror or error}") from None


def _show(report: Report, machine: str, load_ms: float) -> None:
    out = Console(highlight=False)
    out.print(f"[bold]{escape(report.model)}[/bold], encoder {report.vision}, loaded in {load_ms / 1000:.2f} s")
    out.print(f"[dim]{escape(machine)}; median of {report.repeat}, and the spread[/dim]")
    for case in report.cases:
        table = Table(box=None, pad_edge=False, title_justify="left", title=_title(case), title_style="")
        table.add_column("to the first token", min_width=30)
        table.add_column("", justify="right")
        table.add_column("", style="dim")
        for name, words in _ROWS:
            table.add_row(words, *_cells(getattr(case, name), "ms"))
        table.add_section()
        table.add_row(f"encoder, {case.tiles} tile{'s' * (case.tiles != 1)}", *_cells(case.encode, "ms"))
        table.add_row("prefill of a text", *_cells(case.prefill, "tokens/s"))
        table.add_row("decode", *_cells(case.decode, "tokens/s"))
        out.print()
        out.print(table)
    if report.memory is not None:
        own, peak = report.memory.anonymous / 1e6, report.memory.peak / 1e6
        out.print(f"\n[dim]memory {own:,.0f} MB of its own; with mapped files {peak:,.0f} MB at the most[/dim]")


def _title(case: Case) -> str:
    used = "" if case.used_size == case.size else " seen at {}x{}".format(*case.used_size)
    size = "{}x{}".format(*case.size)
    name = size if case.picture == size else f"{escape(case.picture)}, {size}"
    return f"{name}{used}, detail {case.detail}: {case.image_tokens:,} tokens"


def _cells(spread: Spread, unit: str) -> tuple[str, str]:
    digits = 0 if spread.median >= 100 else 1

    def shown(value: float) -> str:
        return f"{value:,.{digits}f}"

    return f"{shown(spread.median)} {unit}", f"{shown(spread.low)} to {shown(spread.high)}"
