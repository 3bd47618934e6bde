"""A file of JSON objects, one a line, that grows: what is done stays done, whenever the process is killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from pocketvlm.errors import PocketVLMError, RequestError


class LineLog:
    """The open file, locked against other processes that open it so. `what` they do is named in errors.

    A line that a killed process left incomplete is cut off. Raises RequestError where the file cannot be written, or
    holds something else than such lines.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise RequestError("is not a regular file", str(path))
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise RequestError(f"cannot be written: {error.strerror}", str(path)) from None
        try:
            self._lock(what)
        except BaseException:  # Ctrl-C too: the caller has no object to close yet
            self._file.close()
            raise

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield all entries with their places. Cuts off what follows the last whole one."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(iter(self._file.readline, b""), 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise RequestError(f"line {number} is not a JSON object", str(self.path))
            yield end, entry
            end += len(line)
            self._file.seek(end)
        with self._errors():
            self._file.truncate(end)

    def entry(self, place: int) -> dict[str, Any]:
        """Return the entry at a place."""
        self._file.seek(place)
        entry: dict[str, Any] = json.loads(self._file.readline())
        return entry

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

    def _lock(self, what: str) -> None:
        """Lock the file against a second process. Windows has no such lock."""
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PocketVLMError(f"{self.path}: another {what} is writing it") from None
        except OSError:  # a file system without locks
            pass

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PocketVLMError(f"{self.path}: cannot be written: {error.strerror or error}") from None
