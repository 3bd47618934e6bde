"""Open the files of a downloaded folder: a file may not be what its name says."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pocketvlm.errors import CheckpointError

# How to make safetensors of PyTorch's pickles. Reading a pickle may run code, so that is left to the user.
SAFE_CHECKPOINT = (
    'if you trust its files, save it again: python -c "from transformers import AutoModelForImageTextToText as M; '
    "M.from_pretrained('FOLDER', dtype='auto').save_pretrained('FOLDER')\""
)
SAFE_ADAPTER = (
    'if you trust it, convert it: python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.clone() for k, v in torch.load('adapter_model.bin', map_location='cpu').items()}, "
    "'adapter_model.safetensors')\""
)
# The first bytes, in lower case, of files that users have in place of the right one, and what the error says.
_WRONG_KINDS = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"),
    (b"<!doctype html", "is a web page, not the file itself; the download failed, so download it again"),
    (b"<html", "is a web page, not the file itself; the download failed, so download it again"),
    (b"gguf", "is a GGUF file; expected the safetensors of the original checkpoint"),
    (b"pk\x03\x04", f"is a PyTorch or zip file; only safetensors are supported; {SAFE_CHECKPOINT}"),
    (b"\x80\x02", f"is a Python pickle; only safetensors are supported; {SAFE_CHECKPOINT}"),
    (b"\x1f\x8b", "is compressed; unpack it first"),
)


def open_file(path: Path) -> BinaryIO:
    """Open `path`, which may be a symbolic link, for reading.

    Raises CheckpointError if it is missing, empty, not a regular file (a FIFO would block), or another kind of file.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise CheckpointError("is a folder, not a file" if stat.S_ISDIR(mode) else "is not a regular file", path)
        file = path.open("rb")
        try:
            _check_kind(file, path)
        except BaseException:  # also Ctrl-C: the caller does not have the file and cannot close it
            file.close()
            raise
        return file
    except FileNotFoundError:
        reason = "is a link to a file that is gone" if path.is_symlink() else "is missing"
        raise CheckpointError(reason, path) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot be read: {error}", path) from None


def read_limited(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes. Raises CheckpointError."""
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CheckpointError(f"has {size:,} bytes; at most {limit >> 20} MiB are accepted", path)
            return file.read(size)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", path) from None


def utf8_name(path: Path) -> str:
    """Return the last part of `path`, where bytes that are not UTF-8 are replaced by U+FFFD."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def _check_kind(file: BinaryIO, path: Path) -> None:
    head = file.read(32).lower()
    file.seek(0)
    if not head:
        raise CheckpointError("is empty", path)
    for beginning, reason in _WRONG_KINDS:
        if head.startswith(beginning):
            raise CheckpointError(reason, path)
