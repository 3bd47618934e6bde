"""The finished pages of documents that are being read: a hidden file next to the output.

It has a line for each page, so that a process that is killed loses only the pages that it was reading. A line before
them says how pages are read; pages of another model or prompt must not get into the same documents. Other lines say
which outputs were written, from which files; others' are not replaced.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pocketvlm.errors import RequestError, quoted
from pocketvlm.reading.read_page import PageText
from pocketvlm.system.line_log import LineLog

_FORM = 1  # of the lines


def stamp_of(path: Path) -> str:
    """Return what changes when a file does: its size and time."""
    state = path.stat()
    return f"{state.st_size}:{state.st_mtime_ns}"


class ProgressFile:
    """Pages by the name and stamp of their file. `how` maps what pages depend on to values, such as the prompt.

    Raises RequestError where the file holds pages that were read in another way.
    """

    def __init__(self, path: Path, how: dict[str, Any]) -> None:
        self.path = path
        self._log = LineLog(path, "read")
        self._pages: dict[tuple[str, str], dict[int, int]] = {}  # places of lines
        self._failed: set[tuple[str, str, int]] = set()
        self._done: dict[tuple[str, str], str] = {}
        self._outputs: dict[str, tuple[str, str | None]] = {}  # the file that each was written from, and its digest
        self._header: dict[str, Any] | None = {"pocketvlm-read": _FORM, **how}  # if it is to be written
        self._empty = True
        try:
            self._load(how)
        except BaseException:
            self._log.close()
            raise

    def _load(self, how: dict[str, Any]) -> None:
        header: dict[str, Any] | None = None
        for place, entry in self._log.entries():
            if header is None or "pocketvlm-read" in entry:  # one without pages is followed by the next
                header = entry
                self._empty = False
                if entry.get("pocketvlm-read") != _FORM:
                    raise RequestError("is not a file of pages that were read", str(self.path))
                continue
            try:
                self._note(place, entry)
            except (KeyError, TypeError):
                raise RequestError("is not a file of pages that were read", str(self.path)) from None
        if header is not None and self._pages:
            self._check(header, how)
        if header == self._header:
            self._header = None

    def _check(self, entry: dict[str, Any], how: dict[str, Any]) -> None:
        for name, value in how.items():
            if entry.get(name) != value:
                before = quoted(entry.get(name)) if entry.get(name) is not None else "none"
                raise RequestError(
                    f"holds pages that were read with another {name}: {before}; use that, another output, or remove "
                    "this file",
                    str(self.path),
                )

    def add(self, file: str, stamp: str, page: PageText) -> None:
        entry = {"file": file, "stamp": stamp, "page": page.number, "label": page.label, "text": page.text}
        entry |= {"notes": page.notes} if page.notes else {}
        entry |= {} if page.error is None else {"error": page.error}
        self._append(entry)

    def begin(self, file: str, stamp: str, output: str, source: Path) -> None:
        """Record that `output` is going to be written from `source`: it is ours, even if this process is killed."""
        self._append({"file": file, "stamp": stamp, "output": output, "source": str(source.resolve())})

    def finish(self, file: str, stamp: str, output: str, source: Path, path: Path) -> None:
        """Record that `output` was written from `source`, and is at `path`."""
        entry = {"file": file, "stamp": stamp, "output": output, "source": str(source.resolve())}
        self._append(entry | {"digest": _digest(path)})

    def wrote(self, output: str, source: Path, path: Path) -> bool:
        """Return whether `output` at `path` was written from `source`, and has not been changed since."""
        file, digest = self._outputs.get(output, (None, None))
        return file == str(source.resolve()) and path.is_file() and digest in (None, _digest(path))

    def read(self, file: str, stamp: str) -> set[int]:
        """Return the numbers of the pages that need not be read again."""
        return {number for number in self._pages.get((file, stamp), {}) if (file, stamp, number) not in self._failed}

    def failed(self, file: str, stamp: str, numbers: Iterable[int]) -> int:
        """Return how many of these pages could not be read."""
        return sum((file, stamp, number) in self._failed for number in numbers)

    def is_finished(self, file: str, stamp: str, output: str) -> bool:
        """Return whether the document was written there, with all its pages."""
        every = self._done.get((file, stamp)) == output
        return every and not any(one[:2] == (file, stamp) for one in self._failed)

    def pages(self, file: str, stamp: str, numbers: Iterable[int]) -> Iterator[PageText]:
        """Yield pages that were read, from the file."""
        places = self._pages[file, stamp]
        for number in numbers:
            entry = self._log.entry(places[number])
            notes = tuple(entry.get("notes", ()))
            yield PageText(number, entry["label"], entry["text"], notes, entry.get("error"))

    def close(self, *, remove: bool = False) -> None:
        """`remove`: nothing is left to do. A file without a line is removed, too."""
        if sys.platform == "win32":  # which cannot remove an open file
            self._log.close()
        if remove or self._empty:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        self._empty = False
        self._log.close()

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, entry: dict[str, Any]) -> None:
        if self._header is not None:
            self._log.append(self._header)
            self._header, self._empty = None, False
        self._note(self._log.append(entry), entry)

    def _note(self, place: int, entry: dict[str, Any]) -> None:
        key = entry["file"], entry["stamp"]
        if "output" in entry:
            self._outputs[entry["output"]] = entry["source"], entry.get("digest")
            if "digest" in entry:
                self._done[key] = entry["output"]
            return
        number = entry["page"]
        self._pages.setdefault(key, {})[number] = place
        (self._failed.add if "error" in entry else self._failed.discard)((*key, number))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
