"""A file of JSON objects, one a line, that grows: what is done stays done, whenever the process is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.system.file_lock import try_lock


class LineLog:
    """The open file, locked against other processes that open it so. `what` they do is named in errors.

    `line` is what each line is, for errors, and `begins` how each begins. Raises RequestError where the file cannot be
    written, or holds something else than such lines.
    """

    def __init__(self, path: Path, what: str, *, line: str = "a JSON object", begins: str = '{"') -> None:
        self.path = path
        self._line = line
        self._begins = begins.encode("ascii")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RequestError("is not a regular file, which is needed to see what is done already", str(path))
        self._file = self._open(what)

    def _open(self, what: str) -> BinaryIO:
        """Open and lock the file. Another process may remove it or put a new one in its place in between."""
        while True:
            try:
                file = self.path.open("a+b")
            except OSError as error:
                raise RequestError(f"cannot be written: {error.strerror}", str(self.path)) from None
            try:
                if not try_lock(file):
                    raise PocketVLMError(f"{self.path}: another {what} is writing it")
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                        return file
            except BaseException:  # Ctrl-C too: the caller has no object to close yet
                file.close()
                raise
            file.close()

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield all entries with their places. A last line that a killed process left incomplete is cut off.

        A last line without its end that is whole, or begins otherwise, may be somebody else's: it is not cut.
        """
        self._file.seek(0)
        end = 0
        for number, line in enumerate(iter(self._file.readline, b""), 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                if not self._is_incomplete(line):
                    raise RequestError(f"line {number} is not {self._line}", str(self.path))
                with self._errors():
                    self._file.truncate(end)
                return
            yield end, entry
            if not line.endswith(b"\n"):
                with self._errors():
                    self._file.write(b"\n")
                    self._file.flush()
                return
            end += len(line)
            self._file.seek(end)

    def _is_incomplete(self, line: bytes) -> bool:
        start = line.rstrip(b"\0")[: len(self._begins)]  # a power cut may leave zeros
        return not line.endswith(b"\n") and self._begins.startswith(start)

    def entry(self, place: int) -> dict[str, Any]:
        """Return the entry at a place."""
        entry: dict[str, Any] = json.loads(self.line(place))
        return entry

    def line(self, place: int) -> bytes:
        """Return the line at a place, with its end."""
        self._file.seek(place)
        return self._file.readline()

    @property
    def mode(self) -> int:
        """The permissions of the file."""
        return os.fstat(self._file.fileno()).st_mode & 0o777

    def append(self, entry: dict[str, Any]) -> int:
        """Add an entry, and return its place. A reader sees the whole line or, for a moment, a part of it."""
        with self._errors():
            place = self._file.seek(0, 2)
            self._file.write(json.dumps(entry).encode("ascii") + b"\n")
            self._file.flush()
        return place

    def close(self) -> None:
        with self._errors():
            self._file.close()

    def __enter__(self) -> LineLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PocketVLMError(f"{self.path}: cannot be written: {error.strerror or error}") from None
