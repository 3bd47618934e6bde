"""InternVL where its files differ from what transformers saves, where it is refused, its tiles and other encoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLForConditionalGeneration

from checkpoints import least_of, mmproj, onnx_encoder, parts, put, same, worst
from pocketvlm.errors import CheckpointError
from pocketvlm.native import mtmd
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision.families import internvl as seen_by
from pocketvlm_converters.families import internvl as family
from tiny import internvl as tiny

pytestmark = pytest.mark.oracle

# Whatever is transformers' default is not there.
SPARSE_TEXT = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 2}
SPARSE_VISION = {"image_size": tiny.TILE, "patch_size": tiny.PATCH, "num_hidden_layers": 2, "hidden_size": 32}
SPARSE_PREPROCESSOR = {
    "crop_to_patches": True,
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": tiny.TILE, "width": tiny.TILE},
}


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_what_configurations_leave_out(kind: str, tmp_path: Path) -> None:
    text = SPARSE_TEXT | {"model_type": kind}
    config = InternVLConfig(text_config=text, vision_config=SPARSE_VISION, image_seq_length=16)
    tiny.save(InternVLForConditionalGeneration(config).to(torch.bfloat16), tmp_path / "full")
    sparse = Path(shutil.copytree(tmp_path / "full", tmp_path / "sparse"))
    listed = {"model_type": "internvl", "text_config": text, "vision_config": SPARSE_VISION}
    (sparse / "config.json").write_text(json.dumps(listed))
    (sparse / "preprocessor_config.json").write_text(json.dumps(SPARSE_PREPROCESSOR))
    (sparse / "processor_config.json").write_text(json.dumps({"image_seq_length": 16}))
    found = parts(tmp_path / "full")
    assert same(found, parts(sparse))
    wanted = {
        "attention.head_count_kv": 32,
        "attention.key_length": 2 if kind == "qwen2" else 128,
        "vocab_size": 151936,
        "context_length": 32768,
        "rope.freq_base": 1e4,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    assert {key: found[0].metadata[f"{kind}.{key}"] for key in wanted} == wanted
    seen = {"attention.head_count": 16, "feed_forward_length": 4096, "attention.layer_norm_epsilon": 1e-6}
    assert {key: found[1].metadata[f"clip.vision.{key}"] for key in seen} == seen


def test_biases_that_only_one_decoder_may_have(checkpoint: Path, pristine: Path, tmp_path: Path) -> None:
    put(checkpoint / "config.json", {"text_config.attention_bias": False})  # not a key of Qwen2's
    assert same(parts(checkpoint), parts(pristine))
    tiny.save(tiny.model(**tiny.VARIANTS["internvl3_5"]), tmp_path / "other")
    put(tmp_path / "other" / "config.json", {"text_config.attention_bias": True})
    with pytest.raises(CheckpointError, match="attention_bias is True"):
        parts(tmp_path / "other")


def test_a_mask_token_is_left_out(tmp_path: Path, pristine: Path) -> None:
    tiny.save(tiny.model(vision={"use_mask_token": True}), tmp_path / "checkpoint")
    names = [[weight.name for weight in part.weights] for part in parts(tmp_path / "checkpoint")]
    assert names == [[weight.name for weight in part.weights] for part in parts(pristine)]


@pytest.mark.parametrize(
    ("file", "where", "value", "reason"),
    [
        ("config", "text_config.model_type", "gpt_oss", "'gpt_oss'; supported language models: qwen2, qwen3"),
        ("config", "text_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("config", "text_config.use_sliding_window", True, "use_sliding_window is True"),
        ("config", "text_config.rope_parameters.rope_type", "yarn", "'yarn' is not known"),
        ("config", "downsample_ratio", 0.4, "downsample_ratio is 0.4; it must be 1 divided by"),
        ("config", "downsample_ratio", 0.2, "do not divide it"),
        ("config", "downsample_ratio", 1e-320, "it must be 1 divided by"),
        ("config", "downsample_ratio", 2, "downsample_ratio is 2"),
        ("config", "projector_hidden_act", "silu", "projector_hidden_act is 'silu'"),
        ("config", "vision_feature_layer", -2, "vision_feature_layer is -2"),
        ("config", "vision_feature_select_strategy", "full", "vision_feature_select_strategy is 'full'"),
        ("config", "vision_config.hidden_act", "silu", "vision_config.hidden_act is 'silu'"),
        ("config", "vision_config.image_size", [32, 64], "must be square"),
        ("config", "vision_config.image_size", ["32", "32"], "image_size is '32'; expected int"),
        ("config", "vision_config.patch_size", [5, 5], "do not divide it"),
        ("config", "vision_config.num_attention_heads", 3, "hidden_size 64 is not a multiple of it"),
        ("config", "vision_config.intermediate_size", 64, "an MLP as wide"),
        ("config", "vision_config.use_mean_pooling", False, "use_mean_pooling is False"),
        (
            "config",
            "vision_config.use_absolute_position_embeddings",
            False,
            "use_absolute_position_embeddings is False",
        ),
        ("config", "vision_config.norm_type", "rms_norm", "norm_type is 'rms_norm'; libmtmd assumes rms_norm for"),
        ("config", "vision_config.norm_type", "batch_norm", "supported: layer_norm, rms_norm"),
        ("config", "vision_config.use_qk_norm", True, "use_qk_norm is True; libmtmd would"),
        ("processor_config", "image_seq_length", 64, "image_seq_length is 64; only 16"),
        ("processor_config", "image_processor.size", {"height": 32, "width": 64}, "size.width is 64"),
        ("processor_config", "image_processor.resample", 2, "resample is 2"),
        ("processor_config", "image_processor.max_patches", 0, "max_patches is 0"),
        ("processor_config", "image_processor.min_patches", 13, "min_patches is 13; must be 1 to 12"),
    ],
)
def test_refused(checkpoint: Path, file: str, where: str, value: Any, reason: str) -> None:
    path = checkpoint / f"{file}.json"
    put(path, {where: value})
    with pytest.raises(CheckpointError) as found:
        parts(checkpoint)
    assert reason in str(found.value) and found.value.path == path


def test_the_other_format_is_named(checkpoint: Path) -> None:
    put(checkpoint / "config.json", {"model_type": "internvl_chat"})
    with pytest.raises(CheckpointError, match=r"OpenGVLab's own format; convert the checkpoint of .* ends in -hf"):
        parts(checkpoint)


def noise() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (tiny.TILE, tiny.TILE, 3), np.uint8)


def rows_of(model: Any, folder: Path) -> Any:
    """Of a tile that has its size already."""
    pixels = tiny.processor(folder).image_processor(images=[noise()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.get_image_features(pixels).pooler_output[0].numpy()


def encoded(path: Path, bundle: Path, tokens: int) -> Any:
    """The same tile twice, by libmtmd."""
    with (
        Model(bundle / "model-F32.gguf") as language,
        Mtmd(path, language, threads=1, tile_tokens=tokens) as encoder,
    ):
        return [encoder.encode_tile(noise()) for _ in range(2)]


@pytest.mark.parametrize(("kind", "least"), least_of({"fp16": 0.9999, "int8": 0.998, "int4": 0.95}))
def test_onnx_types(kind: str, least: float, pristine: Path, reference: Any, tmp_path: Path) -> None:
    encoder = onnx_encoder(pristine, kind, tmp_path)
    assert worst(encoder.encode_tile(noise()), rows_of(reference, pristine)) >= least


@pytest.mark.parametrize(("kind", "least"), [("f16", 0.9999), ("q8_0", 0.998)])
def test_mmproj_types(kind: str, least: float, pristine: Path, bundle: Path, reference: Any, tmp_path: Path) -> None:
    wanted = rows_of(reference, pristine)
    assert worst(encoded(mmproj(pristine, kind, tmp_path), bundle, len(wanted))[0], wanted) >= least


def test_libmtmd_still_misplaces_positions(
    pristine: Path, bundle: Path, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this fails, libmtmd does it right by itself, and native.mtmd_graph_patches must not any more."""
    wanted, path = rows_of(reference, pristine), bundle / "mmproj-f32.gguf"
    assert min(worst(rows, wanted) for rows in encoded(path, bundle, len(wanted))) >= 0.9999, "once and again"
    monkeypatch.setattr(mtmd, "_GRAPH_PATCHES", {})
    assert worst(encoded(path, bundle, len(wanted))[0], wanted) < 0.99


def test_the_large_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms by the root of the mean square, of queries and keys, too. libmtmd knows this one by its sizes alone."""
    monkeypatch.setattr(family, "_RMS_SIZES", (64, 2))
    vision = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
    model = tiny.model(vision=vision)
    tiny.save(model, tmp_path / "checkpoint")
    names = {weight.name for weight in parts(tmp_path / "checkpoint")[1].weights}
    assert {"v.blk.1.attn_q_norm.weight", "v.blk.1.attn_k_norm.weight", "v.blk.1.ln1.weight"} <= names
    assert not {"v.blk.1.ln1.bias", "v.blk.1.ln2.bias", "v.blk.1.attn_q.bias"} & names
    encoder = onnx_encoder(tmp_path / "checkpoint", "fp32", tmp_path)
    assert worst(encoder.encode_tile(noise()), rows_of(model, tmp_path / "checkpoint")) >= 0.99999
    put(tmp_path / "checkpoint" / "config.json", {"vision_config.layer_norm_eps": 1e-5})
    with pytest.raises(CheckpointError, match="only 1e-06 is supported with use_qk_norm"):
        parts(tmp_path / "checkpoint")


@pytest.mark.parametrize("limits", [(1, 12), (1, 6), (3, 9), (1, 1)])
def test_as_many_tiles_as_the_reference(limits: tuple[int, int]) -> None:
    here = seen_by.InternVL(448, 16, *limits)
    size = {"height": 448, "width": 448}
    there = GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, min_patches=limits[0], max_patches=limits[1])
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in np.exp(rng.uniform(0, 8.5, (300, 2)))]
    sizes += [(448 * c + d, 448 * r + d) for c in (1, 2, 3) for r in (1, 2, 3) for d in (-1, 0, 1)]
    sizes += [(896, 449), (634, 634), (633, 633), (800, 600), (1, 4000), (4000, 1)]
    for width, height in sizes:
        plan = here.plan((width, height), "high")
        assert plan.tiles == there.get_number_of_image_patches(height, width), (width, height)


def test_details() -> None:
    plan = seen_by.InternVL(448, 16, 1, 12).plan
    sizes = [(40, 30), (448, 448), (640, 480), (900, 600), (1000, 200), (1920, 1080), (300, 5000)]
    assert [plan(size, "low").used for size in sizes] == [(448, 448)] * len(sizes)
    grids = [tuple(edge // 448 for edge in plan(size, "auto").used) for size in sizes]
    assert grids == [(1, 1), (1, 1), (1, 1), (3, 2), (3, 1), (4, 2), (1, 12)]
    for size in sizes:
        full, auto = plan(size, "high"), plan(size, "auto")
        assert auto.tokens <= full.tokens
        for limit in (256, 700, 768, 1100, 3328):
            assert plan(size, "high", limit).tokens <= limit
        assert plan(size, "high", 3328) == full
    assert plan((1920, 1080), "high", 3 * 256).tiles == 3
    assert plan((1920, 1080), "high", 3 * 256 - 1).tiles == 1


def test_files_of_other_converters(pristine: Path) -> None:
    metadata = {**parts(pristine)[1].metadata}
    assert seen_by.from_metadata(metadata) == seen_by.InternVL(32, 4, 1, 12)
    assert seen_by.from_metadata(metadata | {"clip.vision.preproc_max_tiles": 6}).max_tiles == 6
    for key in ("min", "max"):
        del metadata[f"clip.vision.preproc_{key}_tiles"]
    assert seen_by.from_metadata(metadata) == seen_by.InternVL(32, 4, 1, 12)
    for wrong in ({"clip.vision.preproc_min_tiles": 13}, {"clip.vision.preproc_max_tiles": 0}):
        with pytest.raises(ValueError, match="tiles"):
            seen_by.from_metadata(metadata | wrong)
