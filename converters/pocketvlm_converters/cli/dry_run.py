"""`pocketvlm convert --dry-run`: print the tensors, types, sizes and memory of a conversion as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pocketvlm_converters.checkpoint.lora import Lora


def show(
    checkpoint: Path,
    output: Path | None,
    *,
    every: bool,
    quantize: str,
    mmproj: str,
    onnx: str,
    imatrix: str | None,
    lora: Sequence[Lora],
) -> None:
    """Print one line for `every` tensor, or one for all tensors that differ only in the number of their layer."""
    from pocketvlm_converters.dry_run import condensed, plan_conversion

    name = (output or checkpoint).absolute().name
    plan = plan_conversion(checkpoint, name, quantize=quantize, mmproj=mmproj, onnx=onnx, imatrix=imatrix, lora=lora)
    typer.echo(f"total {_mb(plan.size)}, without manifest and proof; nothing was written")
    typer.echo(f"memory to convert: about {_mb(plan.converting)}")
    typer.echo(
        f"memory to run: about {_mb(plan.running)} ({_mb(plan.weights)} weights, {_mb(plan.cache)} KV cache of "
        f"{plan.context:,} tokens, {_mb(plan.scratch)} scratch)"
    )

    for note in plan.notes:
        typer.echo(f"note: {note}", err=True)
    for file in plan.files:
        typer.echo(f"\n{file.name}  {_mb(file.size)}")
        rows = [(1, tensor) for tensor in file.tensors] if every else list(condensed(file.tensors))
        name_width = max((len(tensor.name) for _, tensor in rows), default=0)
        for count, tensor in rows:
            shape = " x ".join(map(str, tensor.shape))
            times = f"{count:4} x" if count > 1 else ""
            typer.echo(f"  {times:6} {tensor.name:{name_width}}  {shape:>16}  {tensor.kind:8} {tensor.size:>14,} bytes")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
