"""`--memory`: choose options that keep a model within a memory budget, or say how much it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.errors import RequestError, quoted
from pocketvlm.files.locate import locate
from pocketvlm.plan.prediction import PIXEL, SERVER, Planner, Prediction
from pocketvlm.system.machine import memory
from pocketvlm.vision.dynamic_size import DynamicSize
from pocketvlm.vision.embedding_cache import default_size

PICTURE = (1920, 1080)  # width and height of the picture that is planned for by default
_PICTURES_SHARE = 8  # of a budget that several models share, one part is for pictures larger than the planned one
_EMBEDDINGS_SHARE = 4  # of such a model's own memory, one part more is for the embeddings of pictures
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def read_size(text: str, param: str = "--memory") -> int:
    """Parse a size such as 4G, 512M, 1.5 GiB or a number of bytes. Raises RequestError naming `param`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise RequestError(f"invalid size {quoted(text)}; use e.g. 4G or 512M", param)
    return int(float(match[1]) * _UNITS[match[2].upper()])


def read_picture_size(text: str) -> tuple[int, int]:
    """Parse a picture size such as 1920x1080. Raises RequestError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise RequestError(f"invalid picture size {quoted(text)}; use e.g. 1920x1080", "--picture")
    return int(match[1]), int(match[2])


def available() -> int | None:
    """Return how many bytes of memory this machine has available; None if it does not say."""
    sizes = memory()
    return sizes[1] if sizes else None


def planner_for(
    target: str | Path | None, options: LoadOptions, *, picture: tuple[int, int], timed: bool = True
) -> Planner:
    """Plan for what `VLM.load` would load with the same arguments."""
    located = locate(target, model=options.model, mmproj=options.mmproj, verify=False)
    return Planner(located, options, picture=picture, timed=timed)


def keep_within(target: str | Path | None, options: LoadOptions, size: str) -> tuple[LoadOptions, Prediction]:
    """Return options with which the model stays within `size`, and the prediction for them.

    Tokens and pixels of pictures are capped where larger pictures than the planned one would take more. Raises
    MemoryBudgetError if nothing fits.
    """
    budget = read_size(size)
    planner = planner_for(target, options, picture=PICTURE, timed=False)
    prediction = planner.within(budget)
    spare = (budget - prediction.memory_bytes) // 2  # half for larger pictures, half for the embedding cache
    return _chosen(planner, options, prediction, pictures=spare, embeddings=spare), prediction


@dataclass(frozen=True)
class Share:
    """A model's part of a budget that several models share: its options, and the bytes of its engine."""

    options: LoadOptions
    engine: int


def share(targets: Sequence[tuple[str | Path | None, LoadOptions]], budget: int) -> tuple[list[Share], int]:
    """Return each model's share of a budget in bytes, and what all engines together may take of it.

    Each model alone fits the budget; which of them are loaded at a time is for the caller to choose. The process of the
    server and the reading of pictures are counted once. Raises MemoryBudgetError for a model that does not fit.
    """
    planners = [planner_for(target, options, picture=PICTURE, timed=False) for target, options in targets]
    predictions = [planner.within(budget) for planner in planners]
    sees = [bool(planner.encoders) for planner in planners]
    rest = budget - max(prediction.memory_bytes for prediction in predictions)
    most = max(options.max_pixels for _, options in targets) - PICTURE[0] * PICTURE[1]
    parallel = max(options.parallel for _, options in targets)
    pictures = min(rest, budget // _PICTURES_SHARE, PIXEL * parallel * max(0, most)) if any(sees) else 0
    shares = []
    for planner, prediction, (_, options), has_vision in zip(planners, predictions, targets, sees, strict=True):
        engine = prediction.memory_bytes - prediction.parts.get(SERVER, 0)
        spare = budget - pictures - prediction.memory_bytes
        if options.picture_cache_size is None:
            spare = min(spare, engine // _EMBEDDINGS_SHARE)
        chosen = _chosen(planner, options, prediction, pictures=pictures, embeddings=spare)
        shares.append(Share(chosen, engine + ((chosen.picture_cache_size or 0) if has_vision else 0)))
    server = max(prediction.parts.get(SERVER, 0) for prediction in predictions)
    return shares, budget - server - pictures


def _chosen(
    planner: Planner, options: LoadOptions, prediction: Prediction, *, pictures: int, embeddings: int
) -> LoadOptions:
    """Return the options of a prediction, with limits for larger pictures than the planned one.

    `pictures` are the bytes that these may take, and `embeddings` those of the embedding cache.
    """
    configuration = prediction.configuration
    pixels = PICTURE[0] * PICTURE[1] + pictures // (PIXEL * options.parallel)
    cache_size = default_size() if options.picture_cache_size is None else options.picture_cache_size
    chosen = replace(
        options,
        context_size=configuration.context,
        max_pixels=min(options.max_pixels, pixels),
        picture_cache_size=min(cache_size, embeddings),
    )
    if configuration.cache_type == "q8_0":
        chosen = replace(chosen, cache_type="q8_0")
    if planner.encoders:
        chosen = replace(chosen, vision=configuration.encoder)
    if isinstance(planner.family, DynamicSize) or (planner.family and configuration.detail != "auto"):
        chosen = replace(chosen, max_image_tokens=prediction.picture_tokens)
    return chosen
