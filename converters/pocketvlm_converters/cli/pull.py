"""`pocketvlm pull`: the one command that uses the network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pocketvlm.errors import ProofError


def pull(
    model: Annotated[str, typer.Argument(metavar="ID", help="A name of the catalogue, or owner/name of the hub.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="BUNDLE", help="Folder to write; by default where chat finds it by name."
        ),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the language model; the recommended one without.")
    ] = None,
    mmproj: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the vision encoder as GGUF.")] = None,
    onnx: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the vision encoder as ONNX.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of the repository.")] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Take ready GGUF files; nothing is converted.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the download, until another commit is pulled.")] = False,
) -> None:
    """Download a checkpoint and convert it, or a ready GGUF pair. Interrupted, it goes on when it is run again."""
    # Imported here: every `pocketvlm` command loads this module to learn the command's name.
    from pocketvlm_converters.cli.progress import bars
    from pocketvlm_converters.cli.signals import ending_cleanly
    from pocketvlm_converters.pull.pull import Wanted, name_of
    from pocketvlm_converters.pull.pull import pull as pull_model

    wanted = Wanted(model, output, revision, gguf, quantize, mmproj, onnx, force, keep)
    try:
        with ending_cleanly(), bars() as show:
            bundle = pull_model(wanted, show, lambda line: typer.echo(line, err=True))
    except ProofError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: run it again to go on", err=True)
        raise
    for note in bundle.manifest.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {bundle.path}")
    typer.echo(f'try it: pocketvlm chat "What is this?" -i photo.jpg --model {shlex.quote(name_of(bundle))}')
