"""What was rehearsed, in the user's cache folder: {"format": 1, "rehearsals": {KEY: ...}}. Losing it costs seconds."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocketvlm import __version__
from pocketvlm.atomic import keep_text
from pocketvlm.devices import cache_folder
from pocketvlm.plan.rehearsal import Asked, Told, rehearse, told_in
from pocketvlm.vision.choose import device_name
from pocketvlm.vision.speeds import file_hash

_log = logging.getLogger(__name__)
_MOST = 256  # entries; the oldest go


def path() -> Path:
    return cache_folder() / "plans.json"


def rehearsed(asked: Asked) -> Told:
    """As remembered for these files on this device, else now."""
    known = _recall()
    key = _key(asked)
    if key in known:
        try:
            return told_in(known[key])
        except (TypeError, KeyError):
            pass  # of another version
    told = rehearse(asked)
    known[key] = asdict(told)
    text = json.dumps({"format": 1, "rehearsals": dict(list(known.items())[-_MOST:])}, indent=1)
    try:
        keep_text(path(), text)
    except OSError as error:
        _log.info("the plan is not remembered: %s", error)
    return told


def _key(asked: Asked) -> str:
    files = [file_hash(Path(file)) for file in (asked.model, asked.mmproj, asked.onnx) if file]
    settings = {name: value for name, value in asdict(asked).items() if name not in ("model", "mmproj", "onnx")}
    text = json.dumps([__version__, device_name(asked.threads), files, settings])
    return hashlib.sha256(text.encode()).hexdigest()


def _recall() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path().read_bytes())
        return dict(found["rehearsals"]) if found["format"] == 1 else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
