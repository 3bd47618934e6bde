"""Keep measurements in a JSON file in the user's cache folder. Losing the file costs seconds of measuring again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.errors import PocketVLMError
from pocketvlm.system.atomic import keep_text
from pocketvlm.system.machine import cache_folder

_log = logging.getLogger(__name__)
_HASHED_BYTES = 1 << 20  # at either end of a file


@dataclass(frozen=True)
class JSONCache:
    """The file {"format": 1, `name`: {KEY: ENTRY}}. Beyond `most` entries, the oldest are removed."""

    file: str
    name: str
    most: int

    @property
    def path(self) -> Path:
        return cache_folder() / self.file

    def read(self) -> dict[str, Any]:
        """Return all entries by key; none where the file is missing or has another format."""
        try:
            content = json.loads(self.path.read_bytes())
            return dict(content[self.name]) if content["format"] == 1 else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Add or replace an entry. A file that cannot be written is logged; the entry is then measured again later."""
        entries = {**self.read(), key: entry}
        text = json.dumps({"format": 1, self.name: dict(list(entries.items())[-self.most :])}, indent=1)
        try:
            keep_text(self.path, text)
        except OSError as error:
            _log.info("%s cannot be written, so it will be measured again: %s", self.path, error)

    def remove(self) -> bool:
        """Remove the file, and return whether there was one. Raises PocketVLMError where it cannot be removed."""
        try:
            self.path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise PocketVLMError(f"{self.path}: cannot be removed: {error.strerror}") from None
        return True


def file_hash(file: Path) -> str:
    """Return a key for a file's content: the SHA-256 of its size, its first and its last MiB.

    It distinguishes models without reading all their gigabytes.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        digest.update(opened.read(_HASHED_BYTES))
        opened.seek(max(0, size - _HASHED_BYTES))
        digest.update(opened.read(_HASHED_BYTES))
    return digest.hexdigest()
