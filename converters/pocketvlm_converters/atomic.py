"""A folder that appears when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pocketvlm.errors import OutputError, PocketVLMError
from pocketvlm.files.bundle import is_bundle

_PROBE = 1 << 20  # bytes


@contextlib.contextmanager
def new_folder(output: Path, force: bool) -> Iterator[Path]:
    """A folder beside `output`, to be filled; it takes its place at the end, and is gone where anything is raised.

    With `force` it replaces a bundle, and never what else appeared there meanwhile. Raises OutputError.
    An operating system's error, such as a full disk or a read-only target, becomes an OutputError that names `output`.
    """
    with writing(output):
        # Named before it is made: a signal between the two would leave it behind.
        folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
        try:
            folder.mkdir()
            yield folder
            check_target(output, None, force)
            _publish(folder, output)
        except BaseException:  # Ctrl-C and SIGTERM too: nothing may be left behind
            shutil.rmtree(folder, ignore_errors=True)
            raise


def check_target(output: Path, source: Path | None, force: bool) -> None:
    """`source` is a folder that must not be replaced. Raises OutputError."""
    try:
        str(output).encode()
    except UnicodeEncodeError:
        raise OutputError("its path is not UTF-8, which the name of a model must be", output) from None
    if not output.parent.is_dir():
        raise OutputError("the folder that it should lie in does not exist", output)
    if not os.path.lexists(output):
        return
    if not force:
        raise OutputError("already exists; --force replaces a bundle", output)
    checkpoint = source.resolve() if source else None
    if checkpoint and output.resolve() in (checkpoint, *checkpoint.parents):
        raise OutputError("is or holds the checkpoint itself", output)
    if output.is_symlink() or not output.is_dir() or not (is_bundle(output) or not any(output.iterdir())):
        raise OutputError("already exists and is not a bundle: it will not be replaced", output)


def _publish(folder: Path, output: Path) -> None:
    """Rename, the one moment in which the bundle appears; an old one steps aside and comes back if that fails."""
    if not output.exists():
        folder.rename(output)
        return
    aside = folder.with_suffix(".old")
    try:
        output.rename(aside)
        folder.rename(output)
    except BaseException:  # a signal comes between any two calls, right after either rename too
        if aside.exists() and not output.exists():
            aside.rename(output)
        raise
    finally:
        if output.exists():
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """An operating system's error, such as a full disk or a read-only target, as an OutputError that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PocketVLMError):
            raise
        reason = error.strerror or str(error)
        full = "; nothing was written" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise OutputError(f"cannot be written: {reason}{full}", output) from error


def probe(folder: Path) -> None:
    """Raise the OSError that libllama met but does not tell: a full disk is an "iostream error" to it."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * _PROBE)
        file.flush()
