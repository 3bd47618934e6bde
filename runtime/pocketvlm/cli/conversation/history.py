"""Lines that were typed in conversations, kept in a file that only its owner can read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import History

from pocketvlm.system.atomic import keep_text
from pocketvlm.system.machine import state_folder

_MOST = 1000  # texts
_LONGEST = 10_000  # characters: pasted texts would make the file large


def history_file() -> Path:
    return state_folder() / "history.jsonl"


class FileHistory(History):
    """One JSON string a line, the oldest first. Where the file cannot be read or written, texts last as long as this
    process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """Return the texts, the newest first, and shorten a file that has grown to twice its size."""
        texts = []
        with suppress(OSError):
            for line in self._path.read_text("utf-8", "replace").splitlines():
                with suppress(ValueError):  # a line that was not written whole
                    text = json.loads(line)
                    if isinstance(text, str):
                        texts.append(text)
            if len(texts) > 2 * _MOST:
                texts = texts[-_MOST:]
                keep_text(self._path, "".join(map(_line, texts)))
        return reversed(texts[-_MOST:])

    def store_string(self, string: str) -> None:
        if len(string) > _LONGEST:
            return
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, _line(string).encode())  # at once, as other conversations may write, too
            finally:
                os.close(file)


def _line(text: str) -> str:
    return json.dumps(text) + "\n"
