"""`pocketvlm batch`: many requests from a file or a folder, one line an answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from pocketvlm.cli.loading import (
    Device,
    Encoder,
    MaxTokens,
    Memory,
    Mmproj,
    Model,
    Resolution,
    Temperature,
    Threads,
    check_detail,
    loading,
)
from pocketvlm.errors import RequestError

if TYPE_CHECKING:
    from pocketvlm.batch.requests import BatchInput
    from pocketvlm.batch.results import Results

err = Console(stderr=True)


def batch(
    source: Annotated[Path, typer.Argument(help="A folder of pictures, or a .jsonl file, also OpenAI's.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The answers; lines that are there are kept.")],
    prompt: Annotated[str | None, typer.Option(help="The question, for all that bring none.")] = None,
    model: Model = None,
    mmproj: Mmproj = None,
    vision: Encoder = "auto",
    device: Device = "auto",
    system: Annotated[str | None, typer.Option(help="A system message, for all that bring no messages.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    detail: Resolution = "auto",
    ctx_size: Annotated[int | None, typer.Option(help="Context of a request in tokens.")] = None,
    parallel: Annotated[int, typer.Option(help="Requests that run together.")] = 2,
    threads: Threads = None,
    memory: Memory = None,
    ray_actors: Annotated[
        int, typer.Option(help="Engines on a Ray cluster; 0 is this process. RAY_ADDRESS names the cluster.")
    ] = 0,
) -> None:
    """Answer many requests, a line each. Run again, it goes on where it was stopped."""
    from pocketvlm.batch.requests import Defaults, read_batch
    from pocketvlm.batch.results import Results

    if parallel < 1:
        raise RequestError("must be at least 1", "--parallel")
    if ray_actors < 0:
        raise RequestError("must be at least 0", "--ray-actors")
    check_detail(detail)
    fields = {
        name: value for name, value in (("max_tokens", max_tokens), ("temperature", temperature)) if value is not None
    }
    job = read_batch(source, Defaults(prompt, system, detail, fields))
    options: dict[str, Any] = {"context_size": ctx_size, "threads": threads, "vision": vision, "device": device}
    options |= {"parallel": parallel, "supervised": True}
    chosen = loading(model, mmproj, memory=memory, **options)
    order = job.marks
    with Results(output, order) as results:
        try:
            if len(results.done) < len(order):
                _answer(job, results, chosen, ray_actors)
        except KeyboardInterrupt:
            err.print(f"stopped; {len(results.done):,} of {len(order):,} are answered. The same command goes on.")
            sys.exit(130)
        results.sort(order)
        err.print(f"{len(order):,} lines in {escape(str(output))}, {results.errors:,} of them errors", highlight=False)
        if results.errors:
            sys.exit(1)


def _answer(job: BatchInput, results: Results, chosen: dict[str, Any], actors: int) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from pocketvlm.files.locate import locate

    found = locate(chosen["target"], model=chosen["model"], mmproj=chosen["mmproj"], verify=False)
    results.check_model(found.fingerprint)
    columns = (TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=len(job.items), completed=len(results.done))

        def told() -> None:
            bar.advance(task)

        if actors:
            from pocketvlm.batch.ray import run_on_ray
            from pocketvlm.system.machine import physical_cores

            threads = chosen["threads"] or max(1, physical_cores() // actors)
            run_on_ray({**chosen, "threads": threads}, job, results, actors=actors, threads=threads, told=told)
            return
        from pocketvlm.batch.run import run
        from pocketvlm.chat.vlm import VLM

        with VLM.load(**chosen) as vlm:
            run(vlm, job, results, together=chosen["parallel"], told=told)
