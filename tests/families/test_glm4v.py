"""GLM where its files differ from what transformers saves, where it is refused, its sizes and other encoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration
from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize

from checkpoints import mmproj, onnx_encoder, parts, put, same, worst
from pocketvlm.errors import CheckpointError, ImageError
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision.families import glm4v as seen_by
from pocketvlm_converters.checkpoint.folder import Checkpoint
from store import Store
from tiny import glm4v as tiny

pytestmark = pytest.mark.oracle

SPARSE_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "vocab_size": 700,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [0, 1, 1]},
}
SPARSE_VISION = {"depth": 2, "hidden_size": 64, "out_hidden_size": 64}
SPARSE_PREPROCESSOR = {"image_processor_type": "Glm46VImageProcessor", "processor_class": "Glm46VProcessor"}


def test_what_configurations_leave_out(tmp_path: Path) -> None:
    config = GlmOcrConfig(text_config=SPARSE_TEXT, vision_config=SPARSE_VISION)
    tiny.save(GlmOcrForConditionalGeneration(config).to(torch.bfloat16), tmp_path / "full")
    put(tmp_path / "full" / "config.json", {"text_config.num_nextn_predict_layers": 1})
    sparse = Path(shutil.copytree(tmp_path / "full", tmp_path / "sparse"))
    text = SPARSE_TEXT | {"num_nextn_predict_layers": 1}
    listed = {"model_type": "glm_ocr", "text_config": text, "vision_config": SPARSE_VISION}
    (sparse / "config.json").write_text(json.dumps(listed))
    (sparse / "preprocessor_config.json").write_text(json.dumps(SPARSE_PREPROCESSOR))
    (sparse / "processor_config.json").unlink()
    sizes = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}
    put(tmp_path / "full" / "processor_config.json", {"image_processor.size": sizes})
    found = parts(tmp_path / "full")
    assert same(found, parts(sparse))
    wanted = {
        "attention.head_count": 16,
        "attention.head_count_kv": 8,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "context_length": 131072,
        "rope.dimension_sections": [0, 1, 1, 0],
    }
    assert {key: found[0].metadata[f"glm4.{key}"] for key in wanted} == wanted
    seen = {"image_min_pixels": 6272, "image_max_pixels": 5880000, "feed_forward_length": 4096}
    assert {key: found[1].metadata[f"clip.vision.{key}"] for key in seen} == seen


@pytest.fixture
def ocr(store: Store, tmp_path: Path) -> Path:
    """A copy of a checkpoint of GLM-OCR, to be changed."""
    return Path(shutil.copytree(store.checkpoint("glm4v", kind="glm_ocr"), tmp_path / "ocr"))


def test_sizes_of_an_encoder_with_positions(checkpoint: Path) -> None:
    """The layers' MLP is as wide as the output. The metadata state the projector's, as llama.cpp's converter does."""
    language, projector = parts(checkpoint)
    shapes = {weight.name: weight.tensor.shape for weight in projector.weights}
    assert shapes["v.blk.0.ffn_up.weight"] == (64, 48) and shapes["mm.up.weight"] == (92, 64)
    assert shapes["v.position_embd.weight"] == (36, 48) and shapes["v.norm_embd.weight"] == (48,)
    assert projector.metadata["clip.vision.feed_forward_length"] == 92
    assert projector.metadata["clip.vision.image_size"] == 84
    assert language.metadata["glm4.rope.dimension_count"] == 8
    assert language.metadata["glm4.rope.dimension_sections"] == [1, 1, 2, 0]


def test_what_guesses_further_tokens_is_left_out(ocr: Path) -> None:
    checkpoint = ocr
    assert any(".layers.2." in name for name in Checkpoint(checkpoint).tensors)
    language, _ = parts(checkpoint)
    assert language.metadata["glm4.block_count"] == 2
    assert not any(weight.name.startswith("blk.2.") for weight in language.weights)
    put(checkpoint / "config.json", {"text_config.num_nextn_predict_layers": 0})
    with pytest.raises(CheckpointError, match=r"layers\.2\..* is not part of a glm_ocr model"):
        parts(checkpoint)


@pytest.mark.parametrize(
    ("file", "where", "value", "reason"),
    [
        ("config", "text_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("config", "text_config.attention_bias", False, "attention_bias is False"),
        ("config", "text_config.rope_parameters.partial_rotary_factor", 0.3, "whose sum is 2"),
        ("config", "text_config.rope_parameters.partial_rotary_factor", 1.0, "whose sum is 8"),
        ("config", "text_config.rope_parameters.mrope_section", [1, 1, 3], "whose sum is 4"),
        ("config", "text_config.rope_parameters.mrope_section", None, "rope_parameters.mrope_section is missing"),
        ("config", "vision_config.hidden_act", "gelu", "vision_config.hidden_act is 'gelu'"),
        ("config", "vision_config.attention_bias", True, "attention_bias is True"),
        ("config", "vision_config.image_size", 0, "image_size"),
        ("config", "vision_config.in_channels", 1, "in_channels is 1"),
        ("config", "vision_config.spatial_merge_size", 4, "spatial_merge_size is 4"),
        ("config", "vision_config.num_heads", 5, "must be a multiple of 4 times it"),
        ("config", "vision_config.out_hidden_size", 48, "an MLP as wide"),
        ("config", "vision_config.out_hidden_size", 52, "the language model has hidden_size 64"),
        ("processor_config", "image_processor.size.shortest_edge", 12545, "must be multiples of 2"),
        ("processor_config", "image_processor.resample", 2, "resample is 2"),
        ("processor_config", "image_processor.merge_size", 1, "merge_size is 1"),
    ],
)
def test_refused(checkpoint: Path, file: str, where: str, value: Any, reason: str) -> None:
    path = checkpoint / f"{file}.json"
    put(path, {where: value})
    with pytest.raises(CheckpointError) as found:
        parts(checkpoint)
    assert reason in str(found.value) and found.value.path == path


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        ("text_config.attention_bias", True, "attention_bias is True"),
        ("text_config.rope_parameters.mrope_section", [4, 6, 7], "whose sum is 16"),
        ("vision_config.attention_bias", False, "attention_bias is False"),
        ("vision_config.intermediate_size", 48, "an MLP as wide"),
        ("model_type", "glm4v", "q_proj.bias is missing"),  # nearly the other kind
    ],
)
def test_refused_of_ocr(ocr: Path, where: str, value: Any, reason: str) -> None:
    put(ocr / "config.json", {where: value})
    with pytest.raises(CheckpointError, match=reason):
        parts(ocr)


def test_sizes_as_the_reference() -> None:
    here = seen_by.from_metadata({"clip.vision.patch_size": 14})
    rng = np.random.default_rng(0)
    for width, height in np.exp(rng.uniform(0, 9, (400, 2))).astype(int).tolist():
        limits = {"factor": 28, "min_pixels": 112 * 112, "max_pixels": 9633792}
        try:
            rows, cols = smart_resize(2, height, width, 2, **limits)
        except ValueError:
            with pytest.raises(ImageError, match="200 times"):
                here.plan((width, height), "high")
        else:
            assert here.plan((width, height), "high").used == (cols, rows), (width, height)


def noise() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (112, 140, 3), np.uint8)


def rows_of(model: Any, folder: Path) -> Any:
    inputs = tiny.processor(folder).image_processor(images=[noise()], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        found = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    return torch.cat(list(found)).numpy()


@pytest.mark.parametrize(("kind", "least"), {"fp16": 0.9999, "int8": 0.99, "int4": 0.85}.items())
def test_onnx_types(kind: str, least: float, pristine: Path, reference: Any, tmp_path: Path) -> None:
    encoder = onnx_encoder(pristine, kind, tmp_path)
    assert worst(encoder.encode_tile(noise()), rows_of(reference, pristine)) >= least


@pytest.mark.parametrize(("kind", "least"), [("f16", 0.9999), ("q8_0", 0.99)])
def test_mmproj_types(kind: str, least: float, pristine: Path, bundle: Path, reference: Any, tmp_path: Path) -> None:
    wanted = rows_of(reference, pristine)
    with (
        Model(bundle / "model-F32.gguf") as language,
        Mtmd(mmproj(pristine, kind, tmp_path), language, threads=1, tile_tokens=len(wanted)) as encoder,
    ):
        assert worst(encoder.encode_tile(noise()), wanted) >= least
