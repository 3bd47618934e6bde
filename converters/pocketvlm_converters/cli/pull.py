"""`pocketvlm pull`: the only command that uses the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pull(
    model: Annotated[str, typer.Argument(metavar="ID", help="An id of the catalogue, or owner/name of the hub.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="BUNDLE", help="Folder to write; by default one that chat finds by name."
        ),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the language model; by default the recommended one.")
    ] = None,
    mmproj: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the vision encoder as GGUF.")] = None,
    onnx: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the vision encoder as ONNX.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of the repository.")] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Use ready GGUF files; nothing is converted.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the downloaded files until another commit is pulled.")
    ] = False,
) -> None:
    """Download a checkpoint and convert it, or a ready GGUF pair. Run it again to resume an interrupted download."""
    # Imported here: every `pocketvlm` command loads this module to learn the command's name.
    from pocketvlm_converters.cli.convert import failed_proof_exits, print_example, print_written
    from pocketvlm_converters.cli.progress import bars
    from pocketvlm_converters.cli.signals import ending_cleanly
    from pocketvlm_converters.pull.pull import Wanted, name_of
    from pocketvlm_converters.pull.pull import pull as pull_model

    wanted = Wanted(model, output, revision, gguf, quantize, mmproj, onnx, force, keep)
    try:
        with failed_proof_exits(), ending_cleanly(), bars() as progress:
            bundle = pull_model(wanted, progress, lambda line: typer.echo(line, err=True))
    except KeyboardInterrupt:
        typer.echo("interrupted: run it again to resume", err=True)
        raise
    print_written(bundle, bundle.path)
    print_example(name_of(bundle))
