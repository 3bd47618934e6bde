"""The output file of a batch: it grows by whole lines in OpenAI's output form and records what is done."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pocketvlm.errors import PocketVLMError, RequestError, quoted
from pocketvlm.messages import ChatCompletion
from pocketvlm.system.atomic import new_file


def answer_line(custom_id: str, completion: ChatCompletion) -> str:
    """Return the line of an answer. It has no times, which differ in each run, but notes about pictures."""
    body = completion.model_dump(mode="json", exclude={"timings"})
    if any(image.notes for image in completion.timings.images):
        body["timings"] = completion.timings.model_dump(
            mode="json", include={"images": {"__all__": {"pages", "notes"}}}
        )
    return _line(custom_id, 200, body)


def error_line(custom_id: str, error: Exception) -> str:
    """Return the line of a failed request. Its body is what the server would answer."""
    invalid = isinstance(error, RequestError)
    content = {
        "message": str(error),
        "type": "invalid_request_error" if invalid else "server_error",
        "param": error.param if isinstance(error, RequestError) else None,
        "code": getattr(error, "code", None) or ("invalid_value" if invalid else "engine_error"),
    }
    return _line(custom_id, 400 if invalid else 500, {"error": content})


def _line(custom_id: str, status: int, body: dict[str, Any]) -> str:
    response = {"status_code": status, "request_id": None, "body": body}
    return json.dumps({"id": None, "custom_id": custom_id, "response": response, "error": None})


def _id_of(request_hash: str) -> str:
    return f"batch_req_{request_hash}"


class Results:
    """The open file, locked against other processes. `done` has the custom_ids with a line, `errors` counts failures.

    `hashes` has the hash of each custom_id's request, which becomes the id of its line. A line that a killed process
    left incomplete is cut off. Raises RequestError where the file contains other lines than these.
    """

    def __init__(self, path: Path, hashes: Mapping[str, str]) -> None:
        self.path = path
        self._hashes = hashes
        self._lock = threading.Lock()
        self.done: set[str] = set()
        self.errors = 0
        self.fingerprint: str | None = None
        self._new = not path.exists()
        if not (self._new or path.is_file() or path.is_dir()):
            raise RequestError("is not a regular file, which is needed to see what is done already", str(path))
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise RequestError(f"cannot be written: {error.strerror}", str(path)) from None
        try:
            self._lock_file()
            self._read()
        except BaseException:  # Ctrl-C too: the caller has no object to close yet
            self._file.close()
            raise

    def add(self, line: str) -> None:
        """Append a line, from any thread. A line cut by a full disk is removed when the batch resumes."""
        entry = json.loads(line)
        entry["id"] = _id_of(request_hash := self._hashes[entry["custom_id"]])
        entry["response"]["request_id"] = f"req_{request_hash}"
        with self._lock, self._write_errors():
            self._file.write(json.dumps(entry).encode("ascii") + b"\n")
            self._file.flush()
            self._record(entry)

    def check_model(self, fingerprint: str) -> None:
        """Raise RequestError where the existing answers came from another model."""
        if self.fingerprint not in (None, fingerprint):
            raise RequestError(
                f"has answers of another model ({self.fingerprint}, this is {fingerprint}); use that model or another "
                "file",
                str(self.path),
            )

    def sort(self, order: Iterable[str]) -> None:
        """Sort the lines, which were appended as they became ready, into `order`."""
        places: dict[str, tuple[int, int]] = {}
        with self._lock, self._write_errors():
            self._file.seek(0)
            start = 0
            for line in self._file:
                places[json.loads(line)["custom_id"]] = (start, len(line))
                start += len(line)
            ordered = [places[name] for name in order if name in places]
            if ordered == sorted(ordered):
                return
            with new_file(self.path, mode=os.fstat(self._file.fileno()).st_mode & 0o777) as sorted_file:
                for start, size in ordered:
                    self._file.seek(start)
                    sorted_file.write(self._file.read(size))

    def close(self) -> None:
        with self._write_errors():
            self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._new and not self.done:
            with suppress(OSError):  # Windows cannot remove an open file; after closing, another batch may own it
                self.path.unlink()
        self.close()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PocketVLMError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def _lock_file(self) -> None:
        """Lock the file against a second batch. Windows has no such lock."""
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PocketVLMError(f"{self.path}: another batch is writing it") from None
        except OSError:  # a file system without locks
            pass

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                custom_id = str(entry["custom_id"])
                self._record(entry)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise RequestError(f"line {number} is not an answer of a batch", str(self.path)) from None
            if custom_id not in self._hashes:
                raise RequestError(
                    f"contains an answer to {quoted(custom_id)}, which is not among the requests", str(self.path)
                )
            if entry.get("id") != _id_of(self._hashes[custom_id]):
                raise RequestError(
                    f"contains an answer to an earlier form of {quoted(custom_id)}, with another prompt, line or "
                    "option",
                    str(self.path),
                )
            end += len(line)
        self._file.truncate(end)

    def _record(self, line: dict[str, Any]) -> None:
        self.done.add(line["custom_id"])
        self.errors += line["response"]["status_code"] != 200
        with suppress(KeyError):
            self.fingerprint = line["response"]["body"]["system_fingerprint"]
