"""Answers on standard output, each when it is ready. There is no record, so nothing can be resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pocketvlm.batch.lines import error_text, identified, succeeded


class PrintedAnswers:
    """Prints a line for each answer, as `shown` makes it of the entry. `errors` has the messages of failed requests."""

    def __init__(self, hashes: Mapping[str, str], shown: Callable[[dict[str, Any]], str]) -> None:
        self._hashes = hashes
        self._shown = shown
        self.done: set[str] = set()
        self.errors: dict[str, str] = {}

    def add(self, line: str) -> None:
        entry = json.loads(line)
        custom_id = entry["custom_id"]
        self.print(self._shown(identified(entry, self._hashes[custom_id])))
        if succeeded(entry):
            self.done.add(custom_id)
        else:
            self.errors[custom_id] = error_text(entry)

    def print(self, text: str) -> None:
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))  # a file's name may not be Unicode
        sys.stdout.buffer.flush()
