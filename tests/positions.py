"""Positions of prompts with videos: of units, and those that transformers gave when the models came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# Made by tests/golden/video_positions.py.
CLIPS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "video_positions.json").read_text("utf-8"))


def positions(units: list[Any]) -> Any:
    """Return the positions of a prompt, int [3, tokens]."""
    parts, start = [], 0
    for unit in units:
        parts.append(np.full((3, 1), start) if isinstance(unit, int) else unit.at(start)[:3])
        start += 1 if isinstance(unit, int) else unit.advance
    return np.concatenate(parts, axis=1)
