"""What is Qwen2-VL's own: the sizes of its encoder, and what is refused of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import refusal
from pocketvlm.vision import families
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.families import find_family

pytestmark = pytest.mark.oracle


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "square": (lambda c: c["vision_config"].update(mlp_ratio=1), "mlp_ratio is 1"),
    "activation": (lambda c: c["vision_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "heads": (lambda c: c["vision_config"].update(num_heads=8), "multiple of 4"),
    "width": (lambda c: c["vision_config"].update(hidden_size=32), "the language model has hidden_size 64"),
    "patch": (lambda c: c["vision_config"].update(patch_size=65), "patch_size is 65"),
    "merge": (lambda c: c["vision_config"].update(spatial_merge_size=1), "spatial_merge_size is 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path) -> None:
    change, message = REFUSED[name]
    assert message in refusal(checkpoint, change)


def test_files_of_another_converter(pristine: Path) -> None:
    """They have no key for the numbers of pixels, nor for what is merged."""
    metadata = dict(find_family(Checkpoint(pristine)).projector().metadata)
    for key in ("spatial_merge_size", "image_min_pixels", "image_max_pixels"):
        del metadata[f"clip.vision.{key}"]
    found = families.find(metadata)
    assert found is not None and found[0] == "qwen2_vl"
    assert found[1].plan((4032, 3024), "high", None).used == (4032, 3024)
    assert found[1].plan((20, 20), "high", None).used == (56, 56)
