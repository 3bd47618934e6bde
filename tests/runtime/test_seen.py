"""What people are shown of a picture is what the model gets: in place, whole, and with the grid of its tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketvlm.messages import Detail
from pocketvlm.vision.compatibility import family_of
from pocketvlm.vision.family import Family
from pocketvlm.vision.seen import seen_pixels, tile_grid
from runtime.test_families import SOUND

SQUARE = {"image_size": 384, "patch_size": 14}
KINDS: dict[str, dict[str, Any]] = {
    "idefics3": {"image_size": 512, "patch_size": 16, "projector.scale_factor": 4, "preproc_image_size": 2048},
    "gemma3": {"image_size": 512, "patch_size": 16, "projector.scale_factor": 4},
    "gemma4v": SOUND["gemma4v"],
    "pixtral": {"image_size": 1540, "patch_size": 14, "spatial_merge_size": 2},
    "internvl": {"image_size": 448, "patch_size": 14, "projector.scale_factor": 2},
    **{kind: SOUND[kind] for kind in ("qwen2.5vl_merger", "lfm2")},
    "mlp": {
        "image_size": 336,
        "patch_size": 14,
        "image_mean": [0.5, 0.5, 0.5],
        "image_grid_pinpoints": [336, 672, 672, 336, 672, 672, 1008, 336, 336, 1008],
        "mm_patch_merge_type": "spatial_unpad",
    },
}


def family(kind: str) -> Family:
    metadata = {"clip.projector_type": kind} | {f"clip.vision.{key}": value for key, value in KINDS[kind].items()}
    found = family_of(metadata, Path("x.gguf"))
    assert found is not None
    return found


def slope(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture whose red grows to the right and whose green grows downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 128)], axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
@pytest.mark.parametrize("size", [(1600, 900), (500, 1400), (300, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_is_in_its_place(kind: str, size: tuple[int, int], detail: Detail) -> None:
    model = family(kind)
    plan = model.plan(size, detail, None)
    seen = seen_pixels(model, plan, slope(*size))
    width, height = canvas = plan.canvas or plan.used
    assert seen.shape == (height, width, 3)
    columns, rows = tile_grid(plan)
    assert columns * rows in (plan.tiles, plan.tiles - 1)
    left, top = ((outer - inner) // 2 for outer, inner in zip(canvas, plan.used, strict=True))
    inside = seen[top : top + plan.used[1], left : left + plan.used[0]].astype(int)
    expected = slope(*plan.used).astype(int)
    assert abs(inside - expected).mean() < 2
    assert abs(inside - expected)[4:-4, 4:-4].max() < 12
