"""What was rehearsed for these files on this device, so that it need not be rehearsed again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pocketvlm import __version__
from pocketvlm.plan.rehearsal import Asked, Told, rehearse, told_in
from pocketvlm.plan.table import Table
from pocketvlm.vision.choose import device_name
from pocketvlm.vision.speeds import file_hash

TABLE = Table("plans.json", "rehearsals", most=256)


def rehearsed(asked: Asked) -> Told:
    """As remembered for these files on this device, else now; what a busy machine made too long is not remembered."""
    known, key = TABLE.read(), _key(asked)
    if key in known:
        try:
            return told_in(known[key])
        except (TypeError, KeyError):
            pass  # of another version
    told = rehearse(asked)
    if told.steady:
        TABLE.add(key, asdict(told))
    return told


def _key(asked: Asked) -> str:
    files = [file_hash(Path(file)) for file in (asked.model, asked.mmproj, asked.onnx) if file]
    settings = {name: value for name, value in asdict(asked).items() if name not in ("model", "mmproj", "onnx")}
    text = json.dumps([__version__, device_name(asked.threads), files, settings])
    return hashlib.sha256(text.encode()).hexdigest()
