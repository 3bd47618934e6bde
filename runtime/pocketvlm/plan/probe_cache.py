"""Results of probes, kept by files, device and settings, so that a probe runs once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pocketvlm import __version__
from pocketvlm.files.gguf_pieces import piece_files
from pocketvlm.plan.probe import ProbeRequest, ProbeResult, parse_result, run_probe
from pocketvlm.system.json_cache import JSONCache, file_hash
from pocketvlm.vision.select_encoder import device_name

CACHE = JSONCache("plans.json", "rehearsals", most=256)


def cached_probe(request: ProbeRequest) -> ProbeResult:
    """Return the cached result, or run the probe. Times that a busy machine made too long are not cached."""
    entries, key = CACHE.read(), _key(request)
    if key in entries:
        try:
            return parse_result(entries[key])
        except (TypeError, KeyError):
            pass  # written by another version
    result = run_probe(request)
    if result.steady:
        CACHE.add(key, asdict(result))
    return result


def _key(request: ProbeRequest) -> str:
    encoders = [Path(file) for file in (request.mmproj, request.onnx) if file]
    files = [*map(file_hash, [*piece_files(Path(request.model)), *encoders])]
    settings = {name: value for name, value in asdict(request).items() if name not in ("model", "mmproj", "onnx")}
    text = json.dumps([__version__, device_name(request.threads), files, settings])
    return hashlib.sha256(text.encode()).hexdigest()
