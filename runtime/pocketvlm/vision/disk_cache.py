"""Embeddings in files, a file an entry, in a folder that only its owner can read. Processes may share the folder.

A file is a head, the SHA-256 of its name, its head and its data, and the data: float32, little-endian, row by row. The
head is 8 bytes that name the format, 4 that name the type, and the shape as two uint32.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import PictureCacheError
from pocketvlm.system.atomic import new_file

_log = logging.getLogger(__name__)
_MAGIC, _TYPE = b"PVLMEMB1", "<f4"
_HEAD = struct.Struct("<8s4sII")
_SUM = hashlib.sha256().digest_size
_ENTRIES = 10_000  # files: the folder is looked through at each write
_FORGOTTEN = 600.0  # seconds, after which nobody writes a temporary file any more
# Nothing else in the folder is touched.
_OURS = re.compile(r"[0-9a-f]{64}\.emb|\.[0-9a-f]{64}\.emb\.[0-9a-f]+\.partial")


class DiskCache:
    """At most `size` bytes; who was not read for longest goes first.

    Raises PictureCacheError where the folder cannot be made, read and written, or others can look into it.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self._folder = Path(folder).absolute()
        self._size = size
        self._told = False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_private()
            with tempfile.TemporaryFile(dir=self._folder):
                self._scan()
        except PictureCacheError:
            raise
        except OSError as error:
            reason = "is not a folder" if isinstance(error, FileExistsError) else error.strerror or str(error)
            raise PictureCacheError(f"cannot be used as picture cache: {reason}", self._folder) from None

    def read(self, name: str, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
        """float32 of `shape`, read-only. A file that holds anything else is removed."""
        path = self._path(name)
        head = _head(shape)
        size = len(head) + _SUM + 4 * shape[0] * shape[1]
        try:
            with path.open("rb") as file:
                data = file.read(size + 1)
        except OSError:
            return None
        start = len(head) + _SUM
        if len(data) != size or data[: len(head)] != head or data[len(head) : start] != _sum(name, head, data[start:]):
            _log.warning("an entry of the picture cache is damaged and was removed")
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        found: npt.NDArray[np.float32] = (
            np.frombuffer(data, _TYPE, offset=start).reshape(shape).astype(np.float32, copy=False)
        )
        found.setflags(write=False)
        return found

    def write(self, name: str, rows: npt.NDArray[np.float32]) -> None:
        """Whole or not at all. Where that fails nothing is kept, and the log says so once."""
        data = np.ascontiguousarray(rows, _TYPE).data.cast("B")
        head = _head((rows.shape[0], rows.shape[1]))
        size = len(head) + _SUM + data.nbytes
        if size > self._size:
            return
        try:
            with new_file(self._path(name), mode=0o600, synced=False) as file:
                file.truncate(size)  # others see what it will take, so that no two fill the same room
                self._make_room()
                for part in (head, _sum(name, head, data), data):
                    file.write(part)
        except OSError as error:
            if not self._told:
                self._told = True
                _log.warning("the picture cache in %s cannot be written: %s", self._folder, error.strerror or error)

    def clear(self) -> None:
        """PictureCacheError where not all can be removed."""
        try:
            for path, _ in self._scan():
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # the folder itself has gone
            pass
        except OSError as error:
            raise PictureCacheError(f"cannot be emptied: {error.strerror or error}", self._folder) from None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.emb"

    def _check_private(self) -> None:
        if os.name == "nt":  # a folder there belongs to whom its parent belongs
            return
        status = self._folder.stat()
        if not stat.S_IMODE(status.st_mode) & 0o077:
            return
        if any(self._folder.iterdir()):
            raise PictureCacheError(
                "others may look into this folder, and embeddings tell about pictures: "
                "name one for them alone, or make this one private (chmod 700)",
                self._folder,
            )
        self._folder.chmod(0o700)

    def _make_room(self) -> None:
        found = sorted(self._scan(), key=lambda entry: entry[1].st_mtime_ns)
        total, count = sum(status.st_size for _, status in found), len(found)
        stale = time.time() - _FORGOTTEN
        for path, status in found:
            part = path.suffix != ".emb"
            if part and status.st_mtime >= stale:
                continue
            if part or total > self._size or count > _ENTRIES:
                with suppress(OSError):
                    path.unlink()
                total, count = total - status.st_size, count - 1

    def _scan(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # another process was faster
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found


def _head(shape: tuple[int, int]) -> bytes:
    return _HEAD.pack(_MAGIC, _TYPE.encode(), *shape)


def _sum(name: str, head: bytes, data: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(name.encode() + head)
    digest.update(data)
    return digest.digest()
