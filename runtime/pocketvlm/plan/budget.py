"""`--memory`: run a model within so many bytes, or say what would be needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pocketvlm.errors import RequestError
from pocketvlm.files.locate import locate
from pocketvlm.pictures.images import MAX_PIXELS
from pocketvlm.plan.prediction import PIXEL, Planner, Prediction
from pocketvlm.system.machine import memory
from pocketvlm.vision.dynamic_size import DynamicSize
from pocketvlm.vision.embedding_cache import default_size

PICTURE = (1920, 1080)  # planned for, where nobody knows better
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def read_size(text: str, param: str = "--memory") -> int:
    """4G, 512M, 1.5 GiB or a number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise RequestError(f"{text!r} is no size, as in 4G or 512M", param)
    return int(float(found[1]) * _UNITS[found[2].upper()])


def read_picture_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise RequestError(f"{text!r} is no size of a picture, as in 1920x1080", "--picture")
    return int(found[1]), int(found[2])


def available() -> int | None:
    """Bytes that this machine has to spare now."""
    known = memory()
    return known[1] if known else None


def planner_for(loading: Mapping[str, Any], *, picture: tuple[int, int], timed: bool = True) -> Planner:
    """For what `VLM.load` would be given."""
    found = locate(loading.get("target"), model=loading.get("model"), mmproj=loading.get("mmproj"), verify=False)
    return Planner(
        found,
        picture=picture,
        context=loading.get("context_size"),
        vision=loading.get("vision", "auto"),
        parallel=loading.get("parallel", 1),
        threads=loading.get("threads"),
        device=loading.get("device", "auto"),
        supervised=loading.get("supervised", False),
        timed=timed,
    )


def keep_within(loading: Mapping[str, Any], size: str) -> tuple[dict[str, Any], Prediction]:
    """What to give `VLM.load` instead. MemoryBudgetError where nothing fits.

    A picture takes no more than the one that was planned with: its tokens and pixels are capped where that matters.
    """
    budget = read_size(size)
    planner = planner_for(loading, picture=PICTURE, timed=False)
    found = planner.within(budget)
    way = found.way
    room = (budget - found.memory_bytes) // 2  # half for larger pictures, half for what is kept of them
    pixels = PICTURE[0] * PICTURE[1] + room // (PIXEL * max(1, loading.get("parallel", 1)))
    kept = loading.get("picture_cache_size")
    chosen = {
        **loading,
        "context_size": way.context,
        "max_pixels": min(loading.get("max_pixels", MAX_PIXELS), pixels),
        "picture_cache_size": min(default_size() if kept is None else kept, room),
    }
    if planner.encoders:
        chosen["vision"] = way.encoder
    if isinstance(planner.family, DynamicSize) or (planner.family and way.detail != "auto"):
        chosen["max_image_tokens"] = found.picture_tokens
    return chosen, found
