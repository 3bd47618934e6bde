"""`pocketvlm batch`: many requests from a file or pictures, one line an answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.command_options import (
    Changes,
    Choice,
    Fps,
    Frames,
    ManyRequests,
    MaxTokens,
    Memory,
    Model,
    Pages,
    Password,
    Resolution,
    Scale,
    Temperature,
    YesNo,
    check_detail,
    expand_options,
    given_choices,
)
from pocketvlm.cli.console import waiting
from pocketvlm.cli.loading import load_arguments
from pocketvlm.cli.response_format import response_format
from pocketvlm.errors import RequestError, shortened
from pocketvlm.system.printable_console import PrintableConsole

if TYPE_CHECKING:
    from pocketvlm.batch.outputs import Outputs
    from pocketvlm.batch.requests import BatchInput
    from pocketvlm.batch.resume import Resumption
    from pocketvlm.batch.run import Answers
    from pocketvlm.batch.sidecars import Sidecars

err = PrintableConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)
_SHOWN = 5  # failed requests that are listed


@expand_options
def batch(
    source: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="Folders of pictures, PDFs and videos, such files, patterns; or one .jsonl file of requests, also "
            "OpenAI's.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="File for the answers, .jsonl or .csv; what it answers already is skipped. - prints them instead.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="Question, for all requests that have none.")] = None,
    model: Model = None,
    *,
    options: ManyRequests,
    memory: Memory = None,
    system: Annotated[str | None, typer.Option(help="System message, for all requests that have no messages.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON Schema; answers are JSON that is valid by it.")
    ] = None,
    choice: Choice = None,
    yes_no: YesNo = False,
    scale: Scale = None,
    format: Annotated[
        str | None,
        typer.Option(help="jsonl, or csv: a table with the schema's fields as columns. By default as -o ends."),
    ] = None,
    sidecar: Annotated[
        str | None, typer.Option(help="Also write each answer next to its picture: IMG.txt (txt) or IMG.jpg.xmp (xmp).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Ask again what another model, prompt or option has answered.")
    ] = False,
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
    """Answer many requests, one line an answer. Run again, it asks what is new, has changed or has failed."""
    from pocketvlm.batch.outputs import Outputs
    from pocketvlm.batch.requests import Defaults, read_batch
    from pocketvlm.batch.sidecars import KINDS, Sidecars

    if ray_actors < 0:
        raise RequestError("must be at least 0", "--ray-actors")
    if sidecar not in (None, *KINDS):
        raise RequestError(f"must be {' or '.join(KINDS)}, not {shortened(sidecar)}", "--sidecar")
    check_detail(detail)
    outputs = Outputs.named(output, format)
    values = (("max_tokens", max_tokens), ("temperature", temperature))
    fields: dict[str, Any] = {name: value for name, value in values if value is not None}
    if json_schema is not None:
        fields["response_format"] = response_format(json_schema)
    schema = fields.get("response_format", {}).get("json_schema", {}).get("schema")
    decided = given_choices(choice, yes_no, scale)
    outputs = replace(outputs, schema=schema, decides=bool(decided))
    defaults = Defaults(prompt, system, detail, fields, pages, password, fps, frames, changes or None, decided)
    job = read_batch(source, defaults, outputs=outputs.paths)
    _print_passed_over(job.passed_over)
    target, options = load_arguments(model, replace(options, supervised=True), memory=memory)
    sidecars = Sidecars(cast(Any, sidecar), job.pictures()) if sidecar else None

    def answer(answers: Answers) -> str:
        return _answer(job, answers, target, options, ray_actors, sidecars)

    if outputs.record is None:
        failures = _print_answers(job, outputs, answer, sidecars)
    else:
        failures = _record_answers(job, outputs, answer, _fingerprint(target, options), sidecars, force=force)
    if failures:
        sys.exit(1)


def _answer(
    job: BatchInput,
    answers: Answers,
    target: str | None,
    options: LoadOptions,
    actors: int,
    sidecars: Sidecars | None,
) -> str:
    """Ask what is not done, and return how many that were and how long it took."""
    from pocketvlm.cli.batch_progress import BatchProgress

    if sidecars:
        from pocketvlm.batch.sidecars import WithSidecars

        answers = WithSidecars(answers, sidecars)
    with BatchProgress(len(job.items), len(answers.done), err) as progress:
        if actors:
            from pocketvlm.batch.ray import run_on_ray
            from pocketvlm.system.machine import physical_cores

            options = replace(options, threads=options.threads or max(1, physical_cores() // actors))
            progress.start()
            run_on_ray(target, options, job, answers, actors=actors, progress=progress.advance)
        else:
            from pocketvlm.batch.run import run
            from pocketvlm.chat.vlm import VLM

            with VLM.load(target, options) as vlm:
                progress.start()
                run(vlm, job, answers, parallel=options.parallel, progress=progress.advance)
        return progress.total()


def _fingerprint(target: str | None, options: LoadOptions) -> str:
    from pocketvlm.files.locate import locate

    return locate(target, model=options.model, mmproj=options.mmproj, verify=False).fingerprint


def _record_answers(
    job: BatchInput,
    outputs: Outputs,
    answer: Callable[[Answers], str],
    fingerprint: str,
    sidecars: Sidecars | None,
    *,
    force: bool,
) -> int:
    """Bring the record, the table and the sidecars up to date. Return how many requests and sidecars failed."""
    from pocketvlm.batch.results import Results
    from pocketvlm.batch.resume import resume

    assert outputs.record is not None
    order, speed = job.hashes, ""
    with Results(outputs.record, order) as results:
        with waiting("comparing with earlier answers"):
            resumption = resume(results, job, fingerprint, force=force)
        _print_resumption(resumption, len(order))
        if sidecars:
            results.leaving_out = sidecars.remove
        try:
            if len(results.done) < len(order):
                speed = f"; {answer(results)}"
        except KeyboardInterrupt:
            if results.entries:  # an empty record goes, and a table without one would be taken for another's
                outputs.write_table(lambda: results.lines(order), job.kind)
            err.print(f"stopped; {len(results.done):,} of {len(order):,} are answered. The same command continues.")
            sys.exit(130)
        results.sort(order)
        outputs.write_table(lambda: results.lines(order), job.kind)
        err.print(
            f"{len(results.done):,} of {len(order):,} are answered in {' and '.join(map(str, outputs.paths))}{speed}"
        )
        _print_failures(results.errors)
        if resumption.gone:
            err.print(f"{len(resumption.gone):,} answers in {outputs.record} are to what is not here now; they stay")
        if sidecars:
            for line in results.lines(order):
                sidecars.write(line)
            _print_sidecars(sidecars)
        return len(results.errors) + len(sidecars.faults if sidecars else ())


def _print_answers(
    job: BatchInput, outputs: Outputs, answer: Callable[[Answers], str], sidecars: Sidecars | None
) -> int:
    """Print answers on standard output. Return how many requests and sidecars failed."""
    import json

    from pocketvlm.batch.csv_table import CsvTable, schema_fields
    from pocketvlm.batch.printed import PrintedAnswers

    fields = schema_fields(outputs.schema)
    table = CsvTable(fields, job.kind, decides=outputs.decides) if outputs.is_csv else None
    answers = PrintedAnswers(job.hashes, table.row if table else lambda entry: f"{json.dumps(entry)}\n")
    if table:
        answers.print(table.head())
    try:
        speed = answer(answers)
    except KeyboardInterrupt:
        err.print(f"stopped; {len(answers.done):,} of {len(job.items):,} are answered")
        sys.exit(130)
    err.print(f"{len(answers.done):,} of {len(job.items):,} are answered; {speed}")
    _print_failures(answers.errors)
    if sidecars:
        _print_sidecars(sidecars)
    return len(answers.errors) + len(sidecars.faults if sidecars else ())


# ---- messages


def _print_passed_over(counts: Mapping[str, int]) -> None:
    if total := sum(counts.values()):
        kinds = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{count:,} {shortened(ending) or 'without an ending'}" for ending, count in kinds[:_SHOWN])
        more = ", ..." if len(kinds) > _SHOWN else ""
        err.print(f"{total:,} file{'s' * (total > 1)} passed over: {shown}{more}")


def _print_resumption(resumption: Resumption, total: int) -> None:
    again = {
        "failed before": resumption.failed,
        "have other content": resumption.changed,
        "were asked otherwise": resumption.forced,
    }
    reasons = [f"{len(names):,} {why}" for why, names in again.items() if names]
    if resumption.answered or reasons:
        moved = f" ({resumption.moved:,} under another name)" if resumption.moved else ""
        asked_again = f"; asked again: {', '.join(reasons)}" if reasons else ""
        err.print(f"{resumption.answered:,} of {total:,} are answered already{moved}{asked_again}")


def _print_failures(errors: Mapping[str, str]) -> None:
    if errors:
        err.print(f"{len(errors):,} failed; the same command asks them again:")
        for custom_id, message in [*errors.items()][:_SHOWN]:
            err.print(f"  {shortened(custom_id)}: {message}")
        if len(errors) > _SHOWN:
            err.print("  ...")


def _print_sidecars(sidecars: Sidecars) -> None:
    if sidecars.written:
        err.print(f"{sidecars.written:,} sidecars written")
    if sidecars.kept:
        err.print(f"sidecars of others, which stay as they are: {len(sidecars.kept):,}, such as {min(sidecars.kept)}")
    for path, reason in [*sidecars.faults.items()][:_SHOWN]:
        err.print(f"{path}: cannot be written: {reason}")
