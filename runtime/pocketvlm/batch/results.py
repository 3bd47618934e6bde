"""The record of a batch: a file that grows by whole lines, one for each answer, and says what is done."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pocketvlm.batch.file_state import FileState
from pocketvlm.batch.lines import error_text, identified, succeeded
from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.system.atomic import new_file
from pocketvlm.system.line_log import LineLog

_LINE = "an answer of a batch"


@dataclass(frozen=True)
class Entry:
    """A line of the record: its place in bytes, and what a resumed batch needs to know of it.

    `files` is None in lines of earlier versions, which did not record what was asked about.
    """

    custom_id: str
    start: int
    id: str | None
    status: int
    fingerprint: str | None
    files: tuple[FileState | None, ...] | None

    @classmethod
    def of(cls, line: Mapping[str, Any], start: int) -> Entry:
        """Raises ValueError, KeyError or TypeError where `line` is not a line of a batch."""
        response, files = line["response"], line.get("files")
        return cls(
            str(line["custom_id"]),
            start,
            line.get("id"),
            int(response["status_code"]),
            response["body"].get("system_fingerprint"),
            None if files is None else tuple(file and FileState.from_json(file) for file in files),
        )


class Results:
    """The open record, locked against other processes.

    `entries` has its lines by custom_id. `done` has the requests that need not be asked: none before `settle`, which
    says what the lines are worth. `errors` has the messages of the requests that failed since the file was opened.
    `hashes` has the hash of each custom_id's request, which becomes the id of its line.

    A line is appended when its answer is ready, so a kill loses the answers in flight at most. Lines that are replaced
    or changed are left out by rewriting the file, which appears under its name when it is complete: with the first new
    answer, so that a run without one leaves the file as it is. A line that a killed process left incomplete is cut off.
    Raises RequestError where the file contains something else than lines of a batch.
    """

    def __init__(self, path: Path, hashes: Mapping[str, str]) -> None:
        self.path = path
        self._hashes = hashes
        self._lock = threading.Lock()
        self.entries: dict[str, Entry] = {}
        self.done: set[str] = set()
        self.errors: dict[str, str] = {}
        self.leaving_out: Callable[[dict[str, Any]], None] = lambda _line: None
        self._changes: dict[str, dict[str, Any] | None] = {}
        self._unsettled = False
        self._new = not path.exists()
        self._log = self._open()
        try:
            self._read()
        except BaseException:  # Ctrl-C too: the caller has no object to close yet
            self._log.close()
            raise

    def settle(self, done: Iterable[str], changes: Mapping[str, dict[str, Any] | None]) -> None:
        """Say which custom_ids need not be asked, and what becomes of lines: other keys, or None to leave one out.

        A line may get another custom_id, which is then in `done`. The file changes with the next answer or `sort`;
        `leaving_out` is called before that with each line that goes.
        """
        self.done = {*done}
        self._changes = dict(changes)
        self._unsettled = self._unsettled or bool(changes)

    def add(self, line: str) -> None:
        """Append a line, from any thread. A line cut by a full disk is removed when the batch resumes."""
        entry = json.loads(line)
        custom_id = entry["custom_id"]
        whole = identified(entry, self._hashes[custom_id])
        with self._lock:
            if self._unsettled:
                self._rewrite([])
            self.entries[custom_id] = Entry.of(whole, self._log.append(whole))
            if succeeded(entry):
                self.done.add(custom_id)
            else:
                self.errors[custom_id] = error_text(entry)

    def sort(self, order: Iterable[str]) -> None:
        """Bring the lines, which were appended as they became ready, into `order`. Others follow."""
        with self._lock:
            names = [name for name in dict.fromkeys([*order, *self.entries]) if name in self.entries]
            starts = [self.entries[name].start for name in names]
            if self._unsettled or starts != sorted(starts):
                self._rewrite(names)

    def lines(self, order: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Read the lines of these custom_ids, as far as there are some, in this order."""
        for custom_id in order:
            if (line := self.line(custom_id)) is not None:
                yield line

    def line(self, custom_id: str) -> dict[str, Any] | None:
        """Read the line of a custom_id; None where there is none."""
        with self._lock:
            entry = self.entries.get(custom_id)
            return None if entry is None else self._log.entry(entry.start)

    def close(self) -> None:
        self._log.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._new and not self.entries:
            with suppress(OSError):  # Windows cannot remove an open file; after closing, another batch may own it
                self.path.unlink()
        self.close()

    # ---- the file

    def _open(self) -> LineLog:
        return LineLog(self.path, "batch", line=_LINE, begins='{"id":')

    def _read(self) -> None:
        for number, (place, line) in enumerate(self._log.entries(), 1):
            try:
                entry = Entry.of(line, place)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                raise RequestError(f"line {number} is not {_LINE}", str(self.path)) from None
            # Two lines for one request come from joining files: the last one counts.
            self._unsettled = self._unsettled or entry.custom_id in self.entries
            self.entries[entry.custom_id] = entry

    def _rewrite(self, order: Iterable[str]) -> None:
        """Write the lines in `order`, then the others, in a new file, and go on with that."""
        by_name: dict[str, Entry] = {}
        for custom_id, entry in self.entries.items():
            if (change := self._changes.get(custom_id, {})) is not None:
                by_name[change.get("custom_id", custom_id)] = entry
            else:
                self.leaving_out(self._log.entry(entry.start))
        names = dict.fromkeys(name for name in order if name in by_name) | dict.fromkeys(by_name)
        entries: dict[str, Entry] = {}
        real = Path(os.path.realpath(self.path))  # a link must not be replaced
        try:
            with new_file(real, mode=self._log.mode) as file:
                start = 0
                for name in names:
                    entry = by_name[name]
                    data = self._log.line(entry.start)
                    if change := self._changes.get(entry.custom_id):
                        data = json.dumps({**json.loads(data), **change}).encode("ascii") + b"\n"
                    file.write(data)
                    entries[name] = Entry.of(json.loads(data), start)
                    start += len(data)
                if sys.platform == "win32":  # it cannot replace an open file
                    self._log.close()
        except OSError as error:
            raise PocketVLMError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        before, self._log = self._log, self._open()
        before.close()
        self.entries, self._changes, self._unsettled = entries, {}, False
