"""What is LFM2-VL's own: sizes and grids, settings of its image processor, types, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints import least_of, onnx_encoder, parts, put, worst
from pocketvlm.errors import CheckpointError, ImageError
from pocketvlm.vision.families.lfm2_vl import LFM2VL, from_metadata
from pocketvlm.vision.family import PicturePlan
from pocketvlm.vision.select_encoder import tile_patches
from pocketvlm_converters.dry_run import plan_conversion
from tiny import lfm2_vl as tiny

pytestmark = pytest.mark.oracle

# As llama.cpp's own converter describes an encoder of this family; transformers' defaults are the same.
LLAMA_CPP = {"clip.vision.patch_size": 16, "clip.vision.projector.scale_factor": 2}


def sizes(count: int) -> list[tuple[int, int]]:
    """Of all proportions, and those where a grid changes, or another is as near."""
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.uniform(np.log(4), np.log(6000), (count, 2))).astype(int).tolist()
    edges = [16, 48, 511, 512, 513, 720, 724, 725, 1023, 1024, 1025, 1536, 2560, 5120]
    return [*map(tuple, drawn), *((w, h) for w in edges for h in edges)]


def test_sizes_are_the_references() -> None:
    images, family = tiny.Lfm2VlImageProcessor(), from_metadata(LLAMA_CPP)
    cut = {"encoder_patch_size": 16, "downsample_factor": 2, "max_image_tokens": 256}
    grids = set()
    for width, height in sizes(600):
        single = images.smart_resize(height, width, min_image_tokens=64, **cut)
        if single[0] * single[1] > 256 * 32**2:
            with pytest.raises(ImageError, match="too long"):
                family.plan((width, height), "high")
            continue
        wanted = [single]
        if images._is_image_too_large(height, width, max_pixels_tolerance=2.0, **cut):
            columns, rows, *whole, _ = images._get_grid_layout(height, width, 2, 10, 512)
            grids.add((columns, rows))
            wanted.append(tuple(whole))
        assert family.plan((width, height), "high").resizes == tuple(wanted), (width, height)
    assert len(grids) > 15, "nothing was tested"


def test_less_than_in_full_detail() -> None:
    family = from_metadata(LLAMA_CPP)
    for size in sizes(200):
        if max(size) > 200 * min(size):
            continue
        low, high, auto = (family.plan(size, detail) for detail in ("low", "high", "auto"))
        assert low.tiles == 1 and low.tokens <= auto.tokens <= high.tokens
        if auto.tiles > 1:
            assert all(used - 512 < edge for used, edge in zip(auto.used, size, strict=True)), size
        for most in (1, 7, 100, 600, 1000, 3000):
            for plan in (family.plan(size, "auto", most), family.plan(size, "high", most)):
                assert 0 < plan.tokens <= most


def shown(plan: PicturePlan) -> str:
    return "".join(piece if isinstance(piece, str) else "<image>" * piece.tokens for piece in plan.layout)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_thumbnail": False}, {"do_image_splitting": False}, {"min_tiles": 3, "max_tiles": 5, "tile_size": 40}],
    ids=str,
)
def test_settings(settings: dict[str, Any], checkpoint: Path) -> None:
    put(checkpoint / "processor_config.json", {f"image_processor.{key}": value for key, value in settings.items()})
    family, processor = from_metadata(dict(parts(checkpoint)[1].metadata)), tiny.processor(checkpoint)
    control = set(family.control_tokens())
    for width, height in ((90, 70), (200, 31), (20, 21)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        plan = family.plan((width, height), "high")
        seen = processor.image_processor([Image.fromarray(pixels)], return_row_col_info=True, return_tensors="np")
        text = processor.replace_image_token(seen, 0, use_image_special_tokens=True)
        assert shown(plan) == text
        assert {piece for piece in plan.layout if isinstance(piece, str)} <= control
        rows = [cells(tile) for tile in family.tiles(pixels, plan)]
        wanted = [
            one[: int(mask.sum())] for one, mask in zip(seen.pixel_values, seen.pixel_attention_mask, strict=True)
        ]
        assert len(rows) == len(wanted)
        assert all(np.abs(mine - one).max() < 1e-6 for mine, one in zip(rows, wanted, strict=True))


def cells(tile: Any) -> Any:
    """A tile as the reference's encoder gets it, [patches, patch * patch * 3]."""
    edge = tiny.PATCH
    rows, cols = tile.shape[0] // edge, tile.shape[1] // edge
    return tile.reshape(rows, edge, cols, edge, 3).transpose(0, 2, 1, 3, 4).reshape(rows * cols, -1) / 127.5 - 1


@pytest.mark.parametrize(("kind", "least"), least_of({"fp16": 0.9999, "int8": 0.998, "int4": 0.95}))
def test_onnx_types(kind: Any, least: float, reference: Any, pristine: Path, tmp_path: Path) -> None:
    encoder = onnx_encoder(pristine, kind, tmp_path)
    images = tiny.processor(pristine).image_processor
    for height, width in ((6, 12), (20, 4), (8, 10)):  # patches; the table of positions is 5 x 5
        tile = np.random.default_rng(width).integers(0, 256, (height * tiny.PATCH, width * tiny.PATCH, 3), np.uint8)
        inputs = images([Image.fromarray(tile)], return_tensors="pt")
        assert inputs["spatial_shapes"].tolist() == [[height, width]]
        with torch.no_grad():
            wanted = torch.cat(list(reference.get_image_features(**inputs).pooler_output)).numpy()
        assert worst(encoder.encode_tile(tile), wanted) >= least


@pytest.mark.parametrize(
    ("file", "where", "value", "reason"),
    [
        ("config.json", "projector_bias", False, "only True"),
        ("config.json", "projector_hidden_act", "relu", "only 'gelu'"),
        ("config.json", "vision_feature_layer", -2, "only -1"),
        ("config.json", "text_config.model_type", "lfm2_moe", "only 'lfm2'"),
        ("config.json", "text_config.conv_bias", True, "only False"),
        ("config.json", "text_config.conv_L_cache", 1, "must be 2 to"),
        ("config.json", "text_config.conv_L_cache", 4, "the configuration says (64, 1, 4)"),
        ("config.json", "text_config.head_dim", 32, "libllama expects hidden_size / num_attention_heads, 16"),
        ("config.json", "text_config.layer_types", ["conv"] * 4 + ["sliding_attention"], "each conv or full_attention"),
        ("config.json", "text_config.layer_types", ["conv"] * 4, "list of 5 items"),
        ("config.json", "text_config.num_key_value_heads", 3, "not a multiple of it"),
        ("config.json", "text_config.rope_parameters.mrope_section", [3, 3, 2], "default and linear positions"),
        ("config.json", "vision_config.num_patches", 24, "square number"),
        ("config.json", "vision_config.hidden_act", "relu", "vision_config.hidden_act"),
        ("processor_config.json", "image_processor.resample", 3, "only 2"),
        ("processor_config.json", "image_processor.max_pixels_tolerance", 1.5, "only 2.0"),
        ("processor_config.json", "image_processor.encoder_patch_size", 16, "only 4"),
        ("processor_config.json", "image_processor.downsample_factor", 4, "only 2"),
        ("processor_config.json", "image_processor.tile_size", 36, "must be a multiple of 8"),
        ("processor_config.json", "image_processor.min_tiles", 1, "must be 2 to"),
        ("processor_config.json", "image_processor.min_tiles", 11, "11 to 10 tiles"),
        ("processor_config.json", "image_processor.max_tiles", 11, "must be 1 to 10"),
        ("processor_config.json", "image_processor.image_processor_type", "Siglip2ImageProcessor", "current files"),
        ("processor_config.json", "use_image_special_tokens", False, "only True"),
    ],
)
def test_refused(file: str, where: str, value: Any, reason: str, checkpoint: Path) -> None:
    put(checkpoint / file, {where: value})
    with pytest.raises(CheckpointError) as found:
        parts(checkpoint)
    assert reason in str(found.value)


def test_layers_that_convolve_take_no_cache(checkpoint: Path) -> None:
    planned = plan_conversion(checkpoint, "x", quantize="F16", mmproj="f16")
    assert planned.cache == 2 * planned.context * 2 * 2 * (16 + 16)  # bytes, layers, heads, keys and values


@pytest.mark.parametrize(("key", "value"), [("preproc_min_tiles", 9), ("preproc_image_size", 500)])
def test_what_does_not_fit_together(key: str, value: int) -> None:
    with pytest.raises(ValueError, match="tiles of"):
        from_metadata({**LLAMA_CPP, "clip.vision.preproc_max_tiles": 4, f"clip.vision.{key}": value})


def test_as_llama_cpp_writes_it() -> None:
    assert from_metadata(LLAMA_CPP) == LFM2VL(
        tile=512, patch=16, factor=2, min_tiles=2, max_tiles=10, min_tokens=64, max_tokens=256
    )


def test_patches_of_tiles_of_any_size() -> None:
    """What time and memory are reckoned by: sixteen pixels a patch, whatever size the file names."""
    family, file = from_metadata(LLAMA_CPP), {**LLAMA_CPP, "clip.vision.image_size": 256}
    for size, patches in (((512, 512), 1024), ((224, 224), 256), ((1024, 512), 1024)):
        plan = family.plan(size, "auto", None)
        assert tile_patches(family, plan, file) == pytest.approx(patches, rel=0.1)
