"""What a projector's metadata may say about pictures: of a stranger's file, anything."""

from __future__ import annotations

import itertools
from math import inf, nan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from gguf import GGUFWriter
from PIL import Image
from typer.testing import CliRunner

from pocketvlm.cli.commands import app
from pocketvlm.errors import ImageError, ModelFormatError
from pocketvlm.files.gguf_header import GGUFHeader, LazyArray
from pocketvlm.vision.compatibility import check_projector, family_of
from pocketvlm.vision.families.llava import Llava
from pocketvlm.vision.families.smolvlm import SmolVLM
from pocketvlm.vision.family import MosaicSpan, PicturePlan, TileSpan
from pocketvlm.vision.letterbox import Letterbox
from pocketvlm.vision.positions import span_positions

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
    "lfm2": {
        "patch_size": 16,
        "projector.scale_factor": 2,
        "preproc_image_size": 512,
        "preproc_min_tiles": 2,
        "preproc_max_tiles": 10,
        "image_min_pixels": 65536,
        "image_max_pixels": 262144,
    },
    "gemma4v": {"patch_size": 16, "projector.scale_factor": 3},
}
SOUND["pixtral"] = {"image_size": 1540, "patch_size": 14, "spatial_merge_size": 2}
# The keys of llama.cpp's own converters, with what they write for a model that takes one square view of a picture.
SOUND["mlp"] = {"image_size": 336, "patch_size": 14, "image_mean": [0.5, 0.4, 0.3]}
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
    *[("mlp", "image_mean", value) for value in ([0.5, 0.5], ["0.5"] * 3, [inf] * 3, [nan] * 3)],
    *[(kind, key, value) for kind in ("lfm2", "gemma4v") for key in SOUND[kind] for value in HUGE],
    ("lfm2", "image_min_pixels", 1 << 20),
    *[("pixtral", key, value) for key in SOUND["pixtral"] for value in (*HUGE, 1 << 15)],
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


@pytest.mark.parametrize("kind", SOUND)
def test_pictures_of_extreme_proportions(kind: str) -> None:
    """Each gets a plan without an empty tile, or an error that says why."""
    family = family_of(metadata(kind), Path("x.gguf"))
    assert family is not None
    answers = 0
    for size in ((1, 65_535), (65_535, 1), (3, 20_000), (20_000, 3), (9, 1800), (1800, 9), (1, 200), (1, 1)):
        for detail, most in itertools.product(("low", "auto", "high"), (None, 1, 64, 10**30)):
            try:
                plan = family.plan(size, detail, most)
            except ImageError as error:
                assert f"{size[0]}x{size[1]}" in error.message and "cut it into pieces" in error.message
                continue
            assert min(edge for step in plan.resizes for edge in step) > 0
            assert 0 < plan.tokens <= family.tile_tokens * plan.tiles
            answers += 1
            if max(size) <= 1800 and most is None:
                tiles = family.tiles(np.zeros((size[1], size[0], 3), np.uint8), plan)
                assert len(tiles) == plan.tiles and all(tile.size for tile in tiles)
    assert answers >= 48


@pytest.mark.parametrize("kind", SOUND)
def test_a_name_for_pictures_alone(kind: str) -> None:
    """As files have it that take sound, too; libmtmd looks there where the other key is absent or empty."""
    told = metadata(kind)
    own = {"clip.vision.projector_type": told.pop("clip.projector_type")}
    found = family_of(metadata(kind), Path("x.gguf"))
    assert family_of(told | own, Path("x.gguf")) == family_of(told | own | {"clip.projector_type": ""}, Path()) == found
    for wrong in (["mlp"], 3, LazyArray(8, 1, 0)):
        assert family_of(told | own | {"clip.projector_type": wrong}, Path("x.gguf")) is None


@pytest.mark.parametrize("key", ["clip.projector_type", "clip.vision.projector_type"])
def test_a_projector_with_an_array_for_a_name(key: str, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "clip")
    writer.add_array(key, ["mlp"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(ModelFormatError, match=f"{key} is .*, expected text"):
        check_projector(tmp_path / "x.gguf", GGUFHeader(Path("model.gguf"), 3, {}, (), 0))


@pytest.mark.parametrize("kind", ["idefics3", "lfm2"])
def test_a_scale_that_is_missing_is_refused(kind: str) -> None:
    """libmtmd takes 1 and then asserts more than 1."""
    values = metadata(kind)
    del values["clip.vision.projector.scale_factor"]
    with pytest.raises(ModelFormatError, match=r"^x\.gguf: .*projector\.scale_factor"):
        family_of(values, Path("x.gguf"))


@pytest.mark.parametrize(("kind", "key", "value"), WRONG)
def test_nonsense_is_refused(kind: str, key: str, value: Any) -> None:
    changed = {"patch_size": 1} if (kind, value) == ("gemma3", 4096) else {}
    with pytest.raises(ModelFormatError, match=r"^x\.gguf: its metadata is wrong: "):
        family_of(metadata(kind, **changed, **{key: value}), Path("x.gguf"))


def test_a_mean_beyond_any_colour() -> None:
    family = family_of(metadata("mlp", image_mean=[1e308, -1e308, 1]), Path("x.gguf"))
    assert isinstance(family, Llava)
    assert family.fit.colour == (255, 0, 255)


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


def test_a_picture_made_square() -> None:
    """As transformers' image processors do it; bars where a file says nothing."""
    pytest.importorskip("transformers")
    from transformers import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    rng = np.random.default_rng(0)
    for kind, made in (("crop", CLIPImageProcessorPil), ("pad", LlavaImageProcessorPil)):
        reference = made(
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
            do_rescale=False,
            do_normalize=False,
            **({"do_pad": True} if kind == "pad" else {}),
        )
        told = metadata("mlp", image_size=56, image_mean=list(reference.image_mean))
        family = family_of(told | ({} if kind == "pad" else {"pocketvlm.image_fit": kind}), Path("x.gguf"))
        assert family is not None
        for width, height in ((90, 70), (33, 71), (7, 5), (300, 60), (64, 64), (400, 301)):
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            plan = family.plan((width, height), "high", None)
            (wanted,) = reference(Image.fromarray(picture))["pixel_values"]
            (found,) = family.tiles(picture, plan)
            assert plan.used == found.shape[1::-1] == (56, 56)
            assert np.array_equal(found, np.moveaxis(np.asarray(wanted), 0, -1)), (kind, width, height)
    with pytest.raises(ModelFormatError, match="image_fit is 'zoom'"):
        family_of(told | {"pocketvlm.image_fit": "zoom"}, Path("x.gguf"))


@pytest.mark.parametrize("kind", ["crop", "pad"])
def test_a_line_is_made_square_in_little_memory(kind: Literal["crop", "pad"]) -> None:
    """A picture of a million columns would be enlarged to gigabytes before most of it is cut off."""
    line = np.zeros((1, 100_000, 3), np.uint8)
    line[:, 49_990:50_010] = 255
    found = np.asarray(Letterbox(kind, 64).apply(line))
    assert found.shape == (64, 64, 3)
    assert (found[:, 32] > 200).all() == (kind == "crop")


def test_a_mosaic_counts_as_text_does() -> None:
    mosaic = MosaicSpan((TileSpan(1, (2, 3)), TileSpan(2, (2, 3))), (0, 1, 6, 7, 11, 11))
    for mrope, sections in ((False, 1), (True, 4)):
        positions, advance = span_positions(mosaic, mrope=mrope)
        assert np.array_equal(positions, [range(6)] * sections) and advance == 6
    plan = PicturePlan((9, 9), ((9, 9),), ("<a>", mosaic, TileSpan(3, (1, 4))))
    assert (plan.tiles, plan.tokens) == (3, 10)
