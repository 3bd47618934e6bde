"""Where the answers go: a file that grows by whole lines, in OpenAI's output form, and tells what is done already."""

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

from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.messages import ChatCompletion
from pocketvlm.system.atomic import new_file


def answered(custom_id: str, completion: ChatCompletion) -> str:
    """The line of an answer."""
    return _line(custom_id, 200, completion.model_dump(mode="json", exclude={"timings"}))


def refused(custom_id: str, error: Exception) -> str:
    """The line of a request that has no answer; its body is what a server would say."""
    wrong = isinstance(error, RequestError)
    told = {
        "message": error.message if isinstance(error, RequestError) else str(error),
        "type": "invalid_request_error" if wrong else "server_error",
        "param": error.param if isinstance(error, RequestError) else None,
        "code": getattr(error, "code", None) or ("invalid_value" if wrong else "engine_error"),
    }
    return _line(custom_id, 400 if wrong else 500, {"error": told})


def _line(custom_id: str, status: int, body: dict[str, Any]) -> str:
    response = {"status_code": status, "request_id": None, "body": body}
    return json.dumps({"id": None, "custom_id": custom_id, "response": response, "error": None})


def _id_of(mark: str) -> str:
    return f"batch_req_{mark}"


class Results:
    """Open, it belongs to this process alone. `done` are the custom_ids that have a line, `errors` those that failed.

    `wanted` has the mark of each custom_id's request, which becomes the id of its line. A line that a killed process
    left unfinished is cut off. Raises RequestError where the file holds anything else than lines for `wanted`.
    """

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path = path
        self._wanted = wanted
        self._lock = threading.Lock()
        self.done: set[str] = set()
        self.errors = 0
        self.fingerprint: str | None = None
        self._new = not path.exists()
        if not (self._new or path.is_file() or path.is_dir()):
            raise RequestError("is no regular file: a batch reads in it what is done already", str(path))
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise RequestError(f"cannot be written: {error.strerror}", str(path)) from None
        try:
            self._claim()
            self._recall()
        except BaseException:  # Ctrl-C too: nobody else can close it
            self._file.close()
            raise

    def add(self, line: str) -> None:
        """From any thread. What is left of a line that did not fit the disk is cut off when the job goes on."""
        found = json.loads(line)
        found["id"] = _id_of(mark := self._wanted[found["custom_id"]])
        found["response"]["request_id"] = f"req_{mark}"
        with self._lock, self._told():
            self._file.write(json.dumps(found).encode("ascii") + b"\n")
            self._file.flush()
            self._note(found)

    def check_model(self, fingerprint: str) -> None:
        """RequestError where the answers that are there came from another model."""
        if self.fingerprint not in (None, fingerprint):
            raise RequestError(
                f"was begun with another model ({self.fingerprint}, this is {fingerprint})", str(self.path)
            )

    def sort(self, order: Iterable[str]) -> None:
        """Bring the lines into `order`: they came as they were ready."""
        where: dict[str, tuple[int, int]] = {}
        with self._lock, self._told():
            self._file.seek(0)
            start = 0
            for line in self._file:
                where[json.loads(line)["custom_id"]] = (start, len(line))
                start += len(line)
            wanted = [where[name] for name in order if name in where]
            if wanted == sorted(wanted):
                return
            with new_file(self.path, mode=os.fstat(self._file.fileno()).st_mode & 0o777) as sorted_file:
                for start, size in wanted:
                    self._file.seek(start)
                    sorted_file.write(self._file.read(size))

    def close(self) -> None:
        with self._told():
            self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._new and not self.done:
            with suppress(OSError):  # Windows removes no open file; closed, it might be another batch's
                self.path.unlink()
        self.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PocketVLMError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def _claim(self) -> None:
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

    def _recall(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                found = json.loads(line)
                custom_id = str(found["custom_id"])
                self._note(found)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise RequestError(f"line {number} is no answer of a batch", str(self.path)) from None
            if custom_id not in self._wanted:
                raise RequestError(f"holds an answer to {custom_id!r}, which is not asked here", str(self.path))
            if found.get("id") != _id_of(self._wanted[custom_id]):
                raise RequestError(
                    f"holds an answer to {custom_id!r} as it was asked before, with another prompt, line or option",
                    str(self.path),
                )
            end += len(line)
        self._file.truncate(end)

    def _note(self, line: dict[str, Any]) -> None:
        self.done.add(line["custom_id"])
        self.errors += line["response"]["status_code"] != 200
        with suppress(KeyError):
            self.fingerprint = line["response"]["body"]["system_fingerprint"]
