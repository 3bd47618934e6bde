"""What is PaddleOCR-VL's own: files as on the hub, sizes, positions of small pictures, types, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import smart_resize

from checkpoints import drop, mmproj, onnx_encoder, parts, put, same, worst
from pocketvlm.errors import CheckpointError, ImageError
from pocketvlm.native import mtmd
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision.encoder import VisionEncoder
from pocketvlm.vision.families import paddleocr_vl as seen_by
from tiny import paddleocr_vl as tiny

pytestmark = pytest.mark.oracle


def tile_of(rows: int, cols: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(rows * 1000 + cols).integers(0, 256, (rows * 28, cols * 28, 3), np.uint8)


def rows_of(model: Any, folder: Path, tile: Any) -> Any:
    images = tiny.processor(folder).image_processor
    inputs = images(images=[tile], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    return torch.cat(list(features)).numpy()


# In patches, the table is 6 x 6: smaller, as large, larger, and both in one picture.
@pytest.mark.parametrize("grid", [(1, 4), (2, 2), (3, 3), (2, 5), (1, 12), (7, 6)], ids=str)
def test_a_tile_of_any_size(grid: tuple[int, int], reference: Any, pristine: Path, encoder: VisionEncoder) -> None:
    tile = tile_of(*grid)
    assert worst(encoder.encode_tile(tile), rows_of(reference, pristine, tile)) >= 0.9999


def test_libmtmd_alone_resamples_otherwise(
    reference: Any, pristine: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this fails, libmtmd does it right by itself, and PlainResamplingPatch can go."""

    def cosine() -> float:
        with (
            Model(bundle / "model-F32.gguf") as language,
            Mtmd(bundle / "mmproj-f32.gguf", language, threads=1, tile_tokens=4) as encoder,
        ):
            return worst(encoder.encode_tile(tile), wanted)

    tile = tile_of(1, 4)
    wanted = rows_of(reference, pristine, tile)
    assert cosine() >= 0.9999
    monkeypatch.setattr(mtmd, "_RESAMPLED", frozenset())
    assert cosine() < 0.9998


def test_sizes_as_the_reference() -> None:
    here = seen_by.from_metadata({"clip.vision.patch_size": 14})
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, 9, (600, 2))).astype(int).tolist()
    for width, height in [*sizes, (1, 300), (3, 27), (27, 3), (5, 1000)]:
        size = (width, height)
        try:
            rows, cols = smart_resize(height, width, 28, 147384, 2822400)
        except ValueError:
            with pytest.raises(ImageError, match="200 times"):
                here.plan(size, "high")
        else:
            plan = here.plan(size, "high")
            assert (plan.used, plan.original) == ((cols, rows), size)


def test_what_configurations_leave_out(pristine: Path, checkpoint: Path) -> None:
    """Sizes of pictures have older names on the hub, and a head may lie beside the table that it is tied to."""
    path = checkpoint / "processor_config.json"
    processor = json.loads(path.read_text())
    del processor["image_processor"]["size"]
    processor["image_processor"].pop("temporal_patch_size", None)
    processor["image_processor"] |= {"min_pixels": tiny.LEAST, "max_pixels": tiny.MOST}
    path.write_text(json.dumps(processor))
    config = json.loads((checkpoint / "config.json").read_text())
    for section in (config, config["text_config"]):
        section.pop("tie_word_embeddings", None)
    (checkpoint / "config.json").write_text(json.dumps(config))
    drop(checkpoint, "model.visual.vision_model.head.")
    assert same(parts(checkpoint), parts(pristine))
    language, projector = parts(pristine)
    assert language.metadata["paddleocr.rope.dimension_sections"] == [4, 6, 6, 0]
    assert projector.metadata["clip.vision.image_size"] == int((300 * 28 * 28) ** 0.5)


@pytest.mark.parametrize(
    ("file", "where", "value", "reason"),
    [
        ("config", "text_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("config", "text_config.use_bias", True, "use_bias is True"),
        ("config", "text_config.rope_parameters.mrope_section", [4, 6, 7], "whose sum is 16"),
        ("config", "text_config.rope_parameters.mrope_section", None, "rope_parameters.mrope_section is missing"),
        ("config", "text_config.layer_types", ["sliding_attention"] * 2, "only full_attention"),
        ("config", "vision_config.hidden_act", "gelu", "vision_config.hidden_act is 'gelu'"),
        ("config", "vision_config.num_channels", 1, "num_channels is 1"),
        ("config", "vision_config.spatial_merge_size", 4, "spatial_merge_size is 4"),
        ("config", "vision_config.num_attention_heads", 8, "must be a multiple of 4 times it"),
        ("config", "vision_config.intermediate_size", 48, "an MLP as wide"),
        ("config", "vision_config.patch_size", 70, "at most 64 pixels"),
        ("config", "vision_config.rope_parameters.rope_theta", 100.0, "rope_theta is 100.0"),
        ("processor_config", "image_processor.resample", 2, "resample is 2"),
        ("processor_config", "image_processor.merge_size", 1, "merge_size is 1"),
        ("processor_config", "image_processor.temporal_patch_size", 2, "temporal_patch_size is 2"),
    ],
)
def test_refused(checkpoint: Path, file: str, where: str, value: Any, reason: str) -> None:
    path = checkpoint / f"{file}.json"
    put(path, {where: value})
    with pytest.raises(CheckpointError) as error:
        parts(checkpoint)
    assert reason in str(error.value) and error.value.path == path


@pytest.mark.parametrize(("kind", "least"), {"fp16": 0.9999, "int8": 0.99, "int4": 0.85}.items())
def test_onnx_types(kind: str, least: float, pristine: Path, reference: Any, tmp_path: Path) -> None:
    encoder, tile = onnx_encoder(pristine, kind, tmp_path), tile_of(4, 5)
    assert worst(encoder.encode_tile(tile), rows_of(reference, pristine, tile)) >= least


@pytest.mark.parametrize(("kind", "least"), [("f16", 0.9999), ("q8_0", 0.99)])
def test_mmproj_types(kind: str, least: float, pristine: Path, bundle: Path, reference: Any, tmp_path: Path) -> None:
    tile = tile_of(4, 5)
    with (
        Model(bundle / "model-F32.gguf") as language,
        Mtmd(mmproj(pristine, kind, tmp_path), language, threads=1, tile_tokens=20) as encoder,
    ):
        assert worst(encoder.encode_tile(tile), rows_of(reference, pristine, tile)) >= least
