"""Positions of clips as transformers 4.49 computed them, the first version with both families."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pocketvlm.vision.encoder import EmbeddingSpan
from pocketvlm.vision.families.qwen2_vl import Qwen2Video
from pocketvlm.vision.family import TileSpan
from pocketvlm.vision.positions import tile_positions
from pocketvlm.vision.video import Frames
from positions import CLIPS, positions

RATES = {"qwen2_vl": 0, "qwen2_5_vl": 4}  # positions in a second


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: "{family}-{frames}-{rate}-{grid}".format(**clip))
def test_positions_of_a_clip(clip: dict[str, Any]) -> None:
    (rows, cols), (before, after) = clip["grid"], clip["text"]
    times = [number / clip["rate"] for number in range(clip["frames"])]
    frames = Frames((28 * cols, 28 * rows), times, clip["frames"] / clip["rate"])
    plan = Qwen2Video(28, 56 * 56, 10**6, RATES[clip["family"]]).plan(frames, "high", None)
    tiles = [piece for piece in plan.layout if isinstance(piece, TileSpan)]
    spans = [EmbeddingSpan("", tile.index, *tile_positions(plan, tile)) for tile in tiles]
    assert np.array_equal(positions([0] * before + spans + [0] * after), clip["positions"])
