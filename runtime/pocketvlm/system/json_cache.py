"""What was found out once, in the user's cache folder: {"format": 1, NAME: {KEY: ...}}. Losing it costs seconds."""

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
    """`most` entries; the oldest go."""

    file: str
    name: str
    most: int

    @property
    def path(self) -> Path:
        return cache_folder() / self.file

    def read(self) -> dict[str, dict[str, Any]]:
        """All entries; none where the file is not there, or not ours."""
        try:
            found = json.loads(self.path.read_bytes())
            return dict(found[self.name]) if found["format"] == 1 else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Where it cannot be written, it is found out anew the next time."""
        known = {**self.read(), key: entry}
        text = json.dumps({"format": 1, self.name: dict(list(known.items())[-self.most :])}, indent=1)
        try:
            keep_text(self.path, text)
        except OSError as error:
            _log.info("%s are not remembered: %s", self.name, error)
