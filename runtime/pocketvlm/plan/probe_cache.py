"""What was rehearsed for these files on this device, so that it need not be rehearsed again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pocketvlm import __version__
from pocketvlm.plan.probe import ProbeRequest, ProbeResult, parse_result, run_probe
from pocketvlm.system.json_cache import JSONCache, file_hash
from pocketvlm.vision.select_encoder import device_name

CACHE = JSONCache("plans.json", "rehearsals", most=256)


def cached_probe(asked: ProbeRequest) -> ProbeResult:
    """As remembered for these files on this device, else now; what a busy machine made too long is not remembered."""
    known, key = CACHE.read(), _key(asked)
    if key in known:
        try:
            return parse_result(known[key])
        except (TypeError, KeyError):
            pass  # of another version
    told = run_probe(asked)
    if told.steady:
        CACHE.add(key, asdict(told))
    return told


def _key(asked: ProbeRequest) -> str:
    files = [file_hash(Path(file)) for file in (asked.model, asked.mmproj, asked.onnx) if file]
    settings = {name: value for name, value in asdict(asked).items() if name not in ("model", "mmproj", "onnx")}
    text = json.dumps([__version__, device_name(asked.threads), files, settings])
    return hashlib.sha256(text.encode()).hexdigest()
