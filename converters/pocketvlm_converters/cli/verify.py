"""`pocketvlm verify`: print a table of the checks of a bundle, and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pocketvlm.files.bundle import Run


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or the name of a pulled model.")],
    reference: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Also compare with transformers running this checkpoint."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the result to the bundle's manifest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
) -> None:
    """Check that a bundle behaves as its checkpoint does. Exits with code 1 if it does not."""
    # Imported here: every `pocketvlm` command loads this module to learn the command's name.
    from pocketvlm.files.locate import bundle_path
    from pocketvlm.system.option_names import with_flags
    from pocketvlm.system.terminal import echo
    from pocketvlm_converters.cli.progress import bars
    from pocketvlm_converters.cli.signals import ending_cleanly
    from pocketvlm_converters.proof import verify as proof
    from pocketvlm_converters.proof.stages import UNKNOWN

    bundle = bundle_path(bundle)
    with ending_cleanly(), bars() as show:
        runs = proof.verify(bundle, reference, progress=show)
    for run in runs:
        if write:
            proof.write(bundle, run)
        if not as_json:
            _print(run)
    deviation = next((run.deviation for run in runs if run.deviation), None)
    if as_json:
        import json

        report = {"passed": deviation is None, "runs": [run.model_dump(mode="json") for run in runs]}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    if deviation:
        advice = with_flags(proof.advice(deviation), ("quantize", "mmproj", "onnx"))
        echo(f"deviates: {advice}", "red", err=True)
        if reference is not None and len(runs) == 1:
            typer.echo("not compared with transformers, because checks without it have failed", err=True)
        raise typer.Exit(1)
    if not as_json:
        unrecorded = dict.fromkeys(check.stage for check in runs[0].checks if check.value == UNKNOWN)
        if unrecorded:
            stages = ", ".join(unrecorded)
            verdict = f"nothing deviates, but its conversion recorded nothing to compare with for {stages}"
            echo(verdict, "yellow")
        else:
            echo("the bundle behaves as its checkpoint does in all checks", "green")


def _print(run: Run) -> None:
    from pocketvlm.system.printable_console import PrintableConsole

    PrintableConsole(highlight=False).print(table(run))


def table(run: Run) -> Table:
    """Return the table of a run's checks."""
    from rich.table import Table

    rows = Table("stage", "measured", "value", "limit", "", box=None, pad_edge=False, header_style="dim")
    stage = ""
    for check in run.checks:
        verdict = {True: "[green]ok[/green]", False: "[bold red]FAILED[/bold red]", None: "[dim]-[/dim]"}[check.passed]
        cells = (check.stage if check.stage != stage else "", check.measured, check.shown, check.limit)
        rows.add_row(*(cell.replace("[", r"\[") for cell in cells), verdict)
        stage = check.stage
    return rows
