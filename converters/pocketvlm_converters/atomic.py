"""Write a folder that appears when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pocketvlm.errors import OutputError, PocketVLMError
from pocketvlm.files.bundle import is_bundle
from pocketvlm.system.atomic import is_device_name, partial_path

_PROBE = 1 << 20  # bytes
# Beside .NAME.RANDOM.partial: its lock, and what it replaces.
_LOCK, _REPLACED = ".lock", ".old"


@contextlib.contextmanager
def new_folder(output: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder next to `output`; rename it to `output` at the end, or remove it if anything is raised.

    With `force` it replaces an existing bundle, but nothing else, even if that appeared in the meantime. What a process
    that was killed left next to `output` is removed. Raises OutputError, also for errors of the operating system such
    as a full disk or a read-only folder.
    """
    with os_errors_as_output_errors(output):
        _clean_up(output)
        check_target(output, None, force)
        folder = partial_path(output)
        lock = FileLock(folder.with_suffix(_LOCK))
        try:
            with suppress(NotImplementedError):  # a file system without locks
                lock.acquire(timeout=0)
            folder.mkdir()
            yield folder
            check_target(output, None, force)
            _publish(folder, output)
        except BaseException:  # also Ctrl-C and SIGTERM: leave nothing behind
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            _remove_lock(lock)


def _clean_up(output: Path) -> None:
    """Remove the folders next to `output` whose writer was killed: it no longer holds their lock.

    A bundle that it had just renamed, to put another in its place, gets its name back.
    """
    name = re.compile(re.escape(f".{output.name}.") + r"[0-9a-f]{8}" + re.escape(_LOCK))
    try:
        paths = list(output.parent.iterdir())
    except OSError:  # a folder that may be written, but not be read
        return
    for path in paths:
        if not name.fullmatch(path.name):
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError, NotImplementedError):  # its writer lives, or that cannot be known
            continue
        try:
            if path.with_suffix(_REPLACED).is_dir() and not os.path.lexists(output):
                path.with_suffix(_REPLACED).rename(output)
            for suffix in (".partial", _REPLACED):
                shutil.rmtree(path.with_suffix(suffix), ignore_errors=True)
        finally:
            _remove_lock(lock)


def _remove_lock(lock: FileLock) -> None:
    lock.release()  # first: Windows does not remove an open file
    Path(lock.lock_file).unlink(missing_ok=True)


def check_target(output: Path, source: Path | None, force: bool) -> None:
    """Raise OutputError unless a bundle may be written to `output`. `source` is a folder that must not be replaced."""
    try:
        str(output).encode()
    except UnicodeEncodeError:
        raise OutputError("the path is not valid UTF-8; choose another name", output) from None
    if is_device_name(output.name):
        raise OutputError("is the name of a device on Windows; choose another name", output)
    if not output.parent.is_dir():
        raise OutputError("its parent folder does not exist; create it first", output)
    if not os.path.lexists(output):
        return
    if not force:
        raise OutputError("already exists; force=True replaces a bundle", output)
    checkpoint = source.resolve() if source else None
    if checkpoint and output.resolve() in (checkpoint, *checkpoint.parents):
        raise OutputError("is the checkpoint's own folder or contains it; choose another folder", output)
    if output.is_symlink() or not output.is_dir() or not (is_bundle(output) or not any(output.iterdir())):
        raise OutputError("already exists and is not a bundle, so it is not replaced; choose another folder", output)


def _publish(folder: Path, output: Path) -> None:
    """Rename `folder` to `output`. An existing bundle is renamed first, and renamed back if this fails."""
    if not output.exists():
        folder.rename(output)
        return
    replaced = folder.with_suffix(_REPLACED)
    try:
        output.rename(replaced)
        folder.rename(output)
    except BaseException:  # a signal may arrive between any two calls, also right after either rename
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        raise
    finally:
        if output.exists():
            shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def os_errors_as_output_errors(output: Path) -> Iterator[None]:
    """Turn an operating system's error, such as a full disk or a read-only folder, into an OutputError for `output`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PocketVLMError):
            raise
        reason = error.strerror or str(error)
        full = "; nothing was written" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise OutputError(f"cannot be written: {reason}{full}", output) from error


def check_writable(folder: Path) -> None:
    """Write 1 MiB to a temporary file, to raise the OSError behind a failure of libllama.

    libllama reports a full disk as "iostream error", without the reason.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * _PROBE)
        file.flush()
