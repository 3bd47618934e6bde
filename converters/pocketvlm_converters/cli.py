"""`pocketvlm convert`: a checkpoint folder to a bundle, with progress bars."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Folder to write; its name names the model.")
    ],
    quantize: Annotated[
        str, typer.Option(metavar="TYPE", help="Type of the language model: Q4_K_M, Q8_0, ... or f32, f16, bf16.")
    ] = "Q4_K_M",
    mmproj: Annotated[
        str,
        typer.Option(
            metavar="TYPE", help="Type of the vision encoder as GGUF: q8_0, mixed, q5_1, q4_0, f32, f16, bf16, none."
        ),
    ] = "q8_0",
    onnx: Annotated[
        str, typer.Option(metavar="TYPE", help="Type of the vision encoder as ONNX: fp32, fp16, int8, int4 or none.")
    ] = "int8",
    imatrix: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Importance matrix for the language model: a file, or auto to compute one."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Convert a checkpoint to a bundle: quantized language model, vision encoders, and a manifest that seals them."""
    # Imported here: every `pocketvlm` command loads this module to learn the command's name.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from pocketvlm_converters.convert import convert as convert_checkpoint
    from pocketvlm_converters.signals import ending_cleanly

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            tasks[step] = bars.add_task(step, total=total)
        bars.update(tasks[step], completed=done, total=total)

    with ending_cleanly(), bars:
        bundle = convert_checkpoint(
            checkpoint,
            output,
            quantize=quantize,
            mmproj=mmproj,
            onnx=onnx,
            imatrix=imatrix,
            force=force,
            progress=show,
        )
    for note in bundle.manifest.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {output}")
    for entry in bundle.manifest.files:
        typer.echo(f"  {entry.name}  {entry.size / 1e6:,.1f} MB")
    typer.echo(f'try it: pocketvlm chat "What is this?" -i photo.jpg --model {shlex.quote(str(output))}')
