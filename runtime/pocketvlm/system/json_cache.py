"""A JSON file in the user's cache folder for results that take seconds to find again.

Its form is {"format": 1, NAME: {KEY: ENTRY, ...}}.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.system.atomic import keep_text
from pocketvlm.system.machine import cache_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JSONCache:
    """`file` is its name in the cache folder. It holds `most` entries; the oldest are evicted first."""

    file: str
    name: str
    most: int

    @property
    def path(self) -> Path:
        return cache_folder() / self.file

    def read(self) -> dict[str, dict[str, Any]]:
        """Return all entries; none where the file is missing, or not such a cache."""
        try:
            content = json.loads(self.path.read_bytes())
            return dict(content[self.name]) if content["format"] == 1 else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Add an entry. Where the file cannot be written, the caller finds the result again the next time."""
        entries = {**self.read(), key: entry}
        text = json.dumps({"format": 1, self.name: dict(list(entries.items())[-self.most :])}, indent=1)
        try:
            keep_text(self.path, text)
        except OSError as error:
            _log.info("cannot cache %s in %s: %s", self.name, self.path, error)
