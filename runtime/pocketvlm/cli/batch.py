"""`pocketvlm batch`: many requests from a file or a folder, one line per answer."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.command_options import (
    Changes,
    Fields,
    Fps,
    Frames,
    MaxTokens,
    Memory,
    Model,
    Pages,
    Password,
    Resolution,
    Temperature,
    check_detail,
    expand_options,
)
from pocketvlm.cli.loading import load_arguments
from pocketvlm.errors import RequestError

if TYPE_CHECKING:
    from pocketvlm.batch.requests import BatchInput
    from pocketvlm.batch.results import Results

err = Console(stderr=True)


@expand_options
def batch(
    source: Annotated[
        Path, typer.Argument(help="Folder of pictures and PDFs, or a .jsonl file of requests, also OpenAI's.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File for the answers; requests that it answers already are skipped.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Question, for all requests that have none.")] = None,
    model: Model = None,
    *,
    options: Annotated[
        LoadOptions,
        Fields("mmproj", "vision", "device", "context_size", "parallel", "threads", "exact", "cache_type", parallel=2),
    ],
    memory: Memory = None,
    system: Annotated[str | None, typer.Option(help="System message, for all requests that have no messages.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    detail: Resolution = "auto",
    pages: Pages = None,
    password: Password = None,
    fps: Fps = None,
    frames: Frames = None,
    changes: Changes = False,
    ray_actors: Annotated[
        int,
        typer.Option(
            help="Engines on a Ray cluster, which RAY_ADDRESS names; 0 runs the model on this machine, without Ray."
        ),
    ] = 0,
) -> None:
    """Answer many requests, one line per answer. Run again, it continues where it was stopped."""
    from pocketvlm.batch.requests import Defaults, read_batch
    from pocketvlm.batch.results import Results

    if ray_actors < 0:
        raise RequestError("must be at least 0", "--ray-actors")
    check_detail(detail)
    values = (("max_tokens", max_tokens), ("temperature", temperature))
    fields = {name: value for name, value in values if value is not None}
    job = read_batch(source, Defaults(prompt, system, detail, fields, pages, password, fps, frames, changes or None))
    target, options = load_arguments(model, replace(options, supervised=True), memory=memory)
    order = job.hashes
    with Results(output, order) as results:
        try:
            if len(results.done) < len(order):
                _answer(job, results, target, options, ray_actors)
        except KeyboardInterrupt:
            err.print(f"stopped; {len(results.done):,} of {len(order):,} are answered. The same command continues.")
            sys.exit(130)
        results.sort(order)
        err.print(f"{len(order):,} lines in {escape(str(output))}, {results.errors:,} of them errors", highlight=False)
        if results.errors:
            sys.exit(1)


def _answer(job: BatchInput, results: Results, target: str | None, options: LoadOptions, actors: int) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from pocketvlm.files.locate import locate

    results.check_model(locate(target, model=options.model, mmproj=options.mmproj, verify=False).fingerprint)
    columns = (TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=len(job.items), completed=len(results.done))

        def advance() -> None:
            bar.advance(task)

        if actors:
            from pocketvlm.batch.ray import run_on_ray
            from pocketvlm.system.machine import physical_cores

            options = replace(options, threads=options.threads or max(1, physical_cores() // actors))
            run_on_ray(target, options, job, results, actors=actors, progress=advance)
            return
        from pocketvlm.batch.run import run
        from pocketvlm.chat.vlm import VLM

        with VLM.load(target, options) as vlm:
            run(vlm, job, results, parallel=options.parallel, progress=advance)
