"""What a projector's metadata may say about pictures: of a stranger's file, anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from typer.testing import CliRunner

from pocketvlm.cli import app
from pocketvlm.errors import ModelFormatError
from pocketvlm.vision.families.smolvlm import SmolVLM
from pocketvlm.vision.pair import family_of

SQUARE = {"image_size": 512, "patch_size": 16, "projector.scale_factor": 4}
SOUND: dict[str, dict[str, Any]] = {
    "idefics3": SQUARE | {"preproc_image_size": 2048},
    "gemma3": SQUARE,
    "qwen2.5vl_merger": {
        "patch_size": 14,
        "spatial_merge_size": 2,
        "image_min_pixels": 3136,
        "image_max_pixels": 1003520,
    },
}
HUGE = (2**31, 2**63)
WRONG = [
    *[(kind, key, value) for kind, keys in SOUND.items() for key in keys for value in (0, -1, 2.5, "8", [4], None)],
    *[(kind, key, value) for kind in ("idefics3", "gemma3") for key in ("image_size", "patch_size") for value in HUGE],
    *[("idefics3", key, value) for key in ("projector.scale_factor", "preproc_image_size") for value in HUGE],
    ("idefics3", "preproc_image_size", 512 * 64 + 1),
    ("idefics3", "projector.scale_factor", 64),  # no embedding is left
    ("gemma3", "projector.scale_factor", 64),
    ("gemma3", "image_size", 4096),  # with these patches, embeddings by the ten thousand
    *[("qwen2.5vl_merger", key, value) for key in SOUND["qwen2.5vl_merger"] for value in HUGE],
    ("qwen2.5vl_merger", "image_min_pixels", 1003521),
]


def metadata(kind: str, **changed: Any) -> dict[str, Any]:
    values = {**SOUND[kind], **changed}
    return {"clip.projector_type": kind} | {f"clip.vision.{key}": value for key, value in values.items()}


@pytest.mark.parametrize("kind", SOUND)
def test_sound(kind: str) -> None:
    family = family_of(metadata(kind), Path("x.gguf"))
    assert family is not None
    plan = family.plan((640, 480), "auto", None)
    assert 0 < plan.tokens <= family.tile_tokens * plan.tiles
    assert len(family.tiles(np.zeros((480, 640, 3), np.uint8), plan)) == plan.tiles


@pytest.mark.parametrize(("kind", "key", "value"), WRONG)
def test_nonsense_is_refused(kind: str, key: str, value: Any) -> None:
    changed = {"patch_size": 1} if (kind, value) == ("gemma3", 4096) else {}
    with pytest.raises(ModelFormatError, match=r"^x\.gguf: its metadata is wrong: "):
        family_of(metadata(kind, **changed, **{key: value}), Path("x.gguf"))


def test_a_place_in_a_grid_that_the_edge_cuts_has_a_token() -> None:
    family = SmolVLM(tile=512, longest_edge=1100, tokens_per_side=8)
    (used,) = family.plan((1100, 300), "auto").resizes
    assert used == (1536, 512)
    assert "<row_1_col_3>" in family.control_tokens()


def test_inspect_tells_it_in_a_line(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "clip")
    writer.add_string("clip.projector_type", "idefics3")
    writer.add_string("general.name", "[/bold] [red]")
    for key, value in SOUND["idefics3"].items():
        writer.add_uint32(f"clip.vision.{key}", value if key != "projector.scale_factor" else 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    found = CliRunner().invoke(app, ["inspect", str(tmp_path / "x.gguf")])
    assert isinstance(found.exception, ModelFormatError), found.output
    assert "scale_factor is 0" in str(found.exception)
