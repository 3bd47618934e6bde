"""What other threads ask of the scheduler. It reads these commands between two steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pocketvlm.engine.background.encode_task import TileEncoded
from pocketvlm.engine.kv_cache.sequence_pool import SequencePool
from pocketvlm.engine.scheduling.background_prefill import ChunkEvaluated
from pocketvlm.engine.scheduling.request_state import RequestState


@dataclass(frozen=True)
class Submit:
    """Queue a request."""

    request: RequestState


@dataclass(frozen=True)
class Cancel:
    """End a request, at whatever stage it is."""

    request: RequestState


@dataclass(frozen=True)
class AddTile:
    """Give a request the embeddings of a tile, or fail it with the tile's error."""

    request: RequestState
    encoded: TileEncoded


@dataclass(frozen=True)
class RunBetweenSteps:
    """Call `work` with the sequences of the KV cache while nothing is evaluated, and set `result`."""

    work: Callable[[SequencePool], Any]
    result: Future[Any]


@dataclass(frozen=True)
class Wake:
    """Look again for work: a slow reader has caught up, or the scheduler closes."""


Command = Submit | Cancel | AddTile | ChunkEvaluated | RunBetweenSteps | Wake
