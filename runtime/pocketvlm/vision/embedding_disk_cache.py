"""Keep embeddings on disk, one file an entry, in a folder that only its owner can read. Processes may share it.

A file has a header, a checksum and the data. The header has 8 bytes that name the format, 4 bytes that name the type,
and the shape as two uint32. The checksum is the SHA-256 of the entry's name, the header and the data. The data are
float32, little-endian, row by row.
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
from pocketvlm.system.atomic import ABANDONED_AFTER, new_file

_log = logging.getLogger(__name__)
_MAGIC, _TYPE = b"PVLMEMB1", "<f4"
_HEADER = struct.Struct("<8s4sII")
_CHECKSUM_SIZE = hashlib.sha256().digest_size
_MAX_ENTRIES = 10_000  # files: each write scans the whole folder
# Other files in the folder are not touched.
_CACHE_FILE = re.compile(r"[0-9a-f]{64}\.emb|\.[0-9a-f]{64}\.emb\.[0-9a-f]+\.partial")


class DiskCache:
    """A cache of at most `size` bytes. Least recently read entries are evicted first.

    Raises PictureCacheError where the folder cannot be created, read and written, or others may look into it.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self._folder = Path(folder).absolute()
        self._size = size
        self._warned = False
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
        """Return an entry, float32 of `shape`, read-only, or None. A file with other content is removed."""
        path = self._path(name)
        header = _header(shape)
        size = len(header) + _CHECKSUM_SIZE + 4 * shape[0] * shape[1]
        try:
            with path.open("rb") as file:
                content = file.read(size + 1)
        except OSError:
            return None
        start = len(header) + _CHECKSUM_SIZE
        if len(content) != size or content[:start] != header + _checksum(name, header, content[start:]):
            _log.warning("an entry of the picture cache is damaged and was removed")
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        rows: npt.NDArray[np.float32] = (
            np.frombuffer(content, _TYPE, offset=start).reshape(shape).astype(np.float32, copy=False)
        )
        rows.setflags(write=False)
        return rows

    def write(self, name: str, rows: npt.NDArray[np.float32]) -> None:
        """Write an entry atomically. Where that fails nothing is kept, and the first failure is logged."""
        data = np.ascontiguousarray(rows, _TYPE).data.cast("B")
        header = _header((rows.shape[0], rows.shape[1]))
        size = len(header) + _CHECKSUM_SIZE + data.nbytes
        if size > self._size:
            return
        try:
            with new_file(self._path(name), mode=0o600, synced=False, alone=False) as file:
                file.truncate(size)  # reserves the size, so that two processes do not both use the same free room
                self._evict()
                for part in (header, _checksum(name, header, data), data):
                    file.write(part)
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning("the picture cache in %s cannot be written: %s", self._folder, error.strerror or error)

    def clear(self) -> None:
        """Remove all entries. Raises PictureCacheError where one cannot be removed."""
        try:
            for path, _ in self._scan():
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # the folder itself was removed
            pass
        except OSError as error:
            raise PictureCacheError(f"cannot be emptied: {error.strerror or error}", self._folder) from None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.emb"

    def _check_private(self) -> None:
        if os.name == "nt":  # there a folder inherits its access rights from its parent
            return
        status = self._folder.stat()
        if not stat.S_IMODE(status.st_mode) & 0o077:
            return
        if any(self._folder.iterdir()):
            raise PictureCacheError(
                "others may look into this folder, and embeddings reveal what pictures show; "
                "choose an empty folder for the cache, or make this one private (chmod 700)",
                self._folder,
            )
        self._folder.chmod(0o700)

    def _evict(self) -> None:
        files = sorted(self._scan(), key=lambda file: file[1].st_mtime_ns)
        total, count = sum(status.st_size for _, status in files), len(files)
        abandoned_before = time.time() - ABANDONED_AFTER
        for path, status in files:
            temporary = path.suffix != ".emb"
            if temporary and status.st_mtime >= abandoned_before:
                continue
            if temporary or total > self._size or count > _MAX_ENTRIES:
                with suppress(OSError):
                    path.unlink()
                total, count = total - status.st_size, count - 1

    def _scan(self) -> list[tuple[Path, os.stat_result]]:
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _CACHE_FILE.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # another process has removed it meanwhile
                        files.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return files


def _header(shape: tuple[int, int]) -> bytes:
    return _HEADER.pack(_MAGIC, _TYPE.encode(), *shape)


def _checksum(name: str, header: bytes, data: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(name.encode() + header)
    digest.update(data)
    return digest.digest()
