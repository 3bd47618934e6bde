"""`pocketvlm convert`: convert a checkpoint folder to a bundle, with progress bars."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketvlm.errors import CheckpointError, ProofError
from pocketvlm.system.option_names import with_flags
from pocketvlm.system.terminal import echo

if TYPE_CHECKING:
    from pocketvlm.files.bundle import Bundle

_ADVISED = ("keep_unproven", "quantize", "mmproj", "onnx")  # options in the advice about a failed proof


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="BUNDLE", help="Folder to write; its name becomes the model's."),
    ] = None,
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
    lora: Annotated[
        list[Path] | None,
        typer.Option("--lora", metavar="FOLDER", help="LoRA adapter to merge into the weights; may be repeated."),
    ] = None,
    lora_scaled: Annotated[
        list[str] | None,
        typer.Option("--lora-scaled", metavar="FOLDER:SCALE", help="The same with a factor, such as adapter:0.5."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    verify: Annotated[bool, typer.Option(help="Prove that the bundle behaves as the checkpoint does.")] = True,
    keep_unproven: Annotated[
        bool, typer.Option("--keep-unproven", help="Keep a bundle whose proof fails; its manifest says so.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print tensors, types, sizes and memory; write nothing.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="With --dry-run: print every tensor, not one line per kind.")
    ] = False,
) -> None:
    """Convert a checkpoint to a bundle: a quantized language model, vision encoders, and a manifest with hashes."""
    # Imported here: every `pocketvlm` command loads this module to learn the command's name.
    from pocketvlm_converters.cli.progress import bars
    from pocketvlm_converters.cli.signals import ending_cleanly
    from pocketvlm_converters.convert import convert as convert_checkpoint

    if reason := _not_a_checkpoint(checkpoint):
        raise CheckpointError(reason, checkpoint)
    adapters = [*(lora or ()), *map(_scaled, lora_scaled or ())]
    if dry_run:
        from pocketvlm_converters.cli.dry_run import show

        with ending_cleanly():
            show(
                checkpoint,
                output,
                every=every,
                quantize=quantize,
                mmproj=mmproj,
                onnx=onnx,
                imatrix=imatrix,
                lora=adapters,
            )
        return
    if output is None:
        raise typer.BadParameter("is missing; give the folder to write", param_hint="--output")
    with failed_proof_exits(), ending_cleanly(), bars() as progress:
        bundle = convert_checkpoint(
            checkpoint,
            output,
            quantize=quantize,
            mmproj=mmproj,
            onnx=onnx,
            imatrix=imatrix,
            lora=adapters,
            force=force,
            verify=verify,
            keep_unproven=keep_unproven,
            progress=progress,
        )
    print_written(bundle, output)
    for entry in bundle.manifest.files:
        typer.echo(f"  {entry.name}  {entry.size / 1e6:,.1f} MB")
    typer.echo(_proof_line(bundle))
    print_example(str(output))


def _not_a_checkpoint(path: Path) -> str | None:
    """Return what a path is instead of a checkpoint, and what to do with it; None where it may be one."""
    from pocketvlm.files.bundle import is_bundle
    from pocketvlm.files.locate import REPOSITORY
    from pocketvlm_converters.catalog.entry import find_entry, suggested_ids

    if is_bundle(path):
        return f"is a bundle, which needs no conversion; use it: pocketvlm chat --model {shlex.quote(str(path))}"
    if path.suffix.lower() == ".gguf":
        name = shlex.quote(str(path))
        return (
            f"is a GGUF file, which needs no conversion; use it: pocketvlm chat --model {name} --mmproj MMPROJ.gguf "
            "(with the vision encoder that belongs to it)"
        )
    if path.exists() or len(path.parts) > 2:
        return None
    if entry := find_entry(path.as_posix()):
        return f"is a model of the catalogue; `pocketvlm pull {entry.id}` downloads and converts it"
    if REPOSITORY.fullmatch(path.as_posix()):
        return f"no such checkpoint folder; if it is a model of the hub, run: pocketvlm pull {path.as_posix()}"
    return f"no such checkpoint folder, and not a model of the catalogue{suggested_ids(path.as_posix())}"


@contextmanager
def failed_proof_exits() -> Iterator[None]:
    """Print a failed proof as one line and exit with code 1."""
    try:
        yield
    except ProofError as error:
        echo(f"error: {with_flags(str(error), _ADVISED)}", "red", err=True)
        raise typer.Exit(1) from None


def print_written(bundle: Bundle, path: Path) -> None:
    """Print the notes of a new bundle and its path."""
    for note in bundle.manifest.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {path}")


def print_example(model: str) -> None:
    """Print a command that uses the new bundle."""
    typer.echo(f'try it: pocketvlm chat "What is this?" -i photo.jpg --model {shlex.quote(model)}')


def _scaled(text: str) -> tuple[str, float]:
    """Return the folder and the factor of `FOLDER:SCALE`."""
    folder, _, scale = text.rpartition(":")
    try:
        factor = float(scale)
    except ValueError:
        factor = math.nan
    if not folder or not math.isfinite(factor):
        raise typer.BadParameter(f"invalid adapter {text!r}; use e.g. adapter:0.5", param_hint="--lora-scaled")
    return folder, factor


def _proof_line(bundle: Bundle) -> str:
    """Return one line about the proof in the manifest."""
    proof = bundle.manifest.proof
    if proof is None:
        return "  nothing was proven"
    run = proof.runs[0]
    if run.deviation:
        return f"  UNPROVEN: {run.deviation.stage}: {run.deviation.measured}: {run.deviation.shown}"
    return f"  proven: {run.summary}"
