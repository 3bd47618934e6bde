"""What is Gemma 4's own: sizes of pictures, configurations of other layouts, types, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

from checkpoints import least_of, mmproj, onnx_encoder, parts, put, worst
from pocketvlm.errors import CheckpointError, ImageError
from pocketvlm.files.footprint import weights_of
from pocketvlm.files.gguf_header import read_header
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision.families.gemma4 import Gemma4, from_metadata
from pocketvlm_converters.convert import convert
from tiny import gemma4 as tiny

pytestmark = pytest.mark.oracle

# As llama.cpp's own converter describes an encoder of this family.
LLAMA_CPP = {"clip.vision.patch_size": 16, "clip.vision.projection_dim": 1536}


def sizes(count: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    drawn: list[tuple[int, int]] = [(int(w), int(h)) for w, h in np.exp(rng.uniform(0, np.log(6000), (count, 2)))]
    return [*drawn, (1, 1), (1, 5000), (5000, 1), (768, 768), (804, 802)]


@pytest.mark.parametrize("tokens", [70, 280, 1120])
def test_sizes_are_the_references(tokens: int) -> None:
    family = from_metadata({**LLAMA_CPP, "pocketvlm.picture_tokens": tokens})
    for width, height in sizes(400):
        try:
            wanted = get_aspect_ratio_preserving_size(height, width, 16, tokens * 9, 3)[::-1]
        except ValueError:
            with pytest.raises(ImageError, match="does not fit"):
                family.plan((width, height), "high")
            continue
        assert family.plan((width, height), "high").used == wanted, (width, height)


def test_less_than_in_full_detail() -> None:
    family = from_metadata({**LLAMA_CPP, "pocketvlm.picture_tokens": 560})
    for size in sizes(200):
        low, high, auto = (family.plan(size, detail).tokens for detail in ("low", "high", "auto"))
        assert low <= auto <= high <= 560 and low <= 70
        for most in (1, 50, 70, 300):
            assert family.plan(size, "high", most).tokens <= most


def test_as_llama_cpp_writes_it() -> None:
    """Whether pictures look both ways goes by the width of the language model, as libmtmd has it."""
    assert from_metadata(LLAMA_CPP) == Gemma4(cell=48, tokens=280, non_causal=False)
    assert from_metadata({**LLAMA_CPP, "clip.vision.projection_dim": 5376}).non_causal


def test_sound_is_left_out(checkpoint: Path) -> None:
    """The audio encoder is no part of what is converted, and no error either."""
    from safetensors.numpy import load_file, save_file

    path = checkpoint / "model.safetensors"
    more = {f"model.{name}": np.ones((2, 3), np.float32) for name in ("audio_tower.layers.0.x", "embed_audio.y")}
    save_file(load_file(path) | more, path)
    names = {weight.name for part in parts(checkpoint) for weight in part.weights}
    assert not any("audio" in name for name in names)


TILE = np.random.default_rng(0).integers(0, 256, (60, 84, 3), np.uint8)


def seen_by(model: Any, checkpoint: Path) -> Any:
    """Embeddings of TILE."""
    inputs = tiny.processor(checkpoint).image_processor([Image.fromarray(TILE)], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        seen = model.get_image_features(inputs["pixel_values"], inputs["image_position_ids"]).pooler_output
    return torch.cat(list(seen)).numpy()


@pytest.mark.parametrize(("kind", "least"), least_of({"fp16": 0.9999, "int8": 0.99, "int4": 0.9}))
def test_onnx_types(kind: Any, least: float, reference: Any, pristine: Path, tmp_path: Path) -> None:
    encoder = onnx_encoder(pristine, kind, tmp_path)
    assert worst(encoder.encode_tile(TILE), seen_by(reference, pristine)) >= least


def test_matrices_without_bounds(bundle: Path, tmp_path: Path) -> None:
    model = tiny.model()
    for number, (name, value) in enumerate(model.named_buffers()):
        if name.endswith(("put_min", "put_max")) and number % 3:
            value.mul_(torch.inf)
    folder = tmp_path / "checkpoint"
    tiny.save(model, folder)
    wanted = seen_by(model, folder)
    with (
        Model(bundle / "model-F32.gguf") as language,
        Mtmd(mmproj(folder, "f32", tmp_path), language, threads=1, tile_tokens=len(wanted)) as encoder,
    ):
        assert worst(encoder.encode_tile(TILE), wanted) >= 0.9999
    assert worst(onnx_encoder(folder, "fp32", tmp_path).encode_tile(TILE), wanted) >= 0.9999


def test_what_takes_memory(checkpoint: Path, tmp_path: Path) -> None:
    """Layers that use the keys of others have no cache; inputs of layers are looked up as tokens are."""
    made = convert(checkpoint, tmp_path / "bundle", quantize="F16", mmproj="none", onnx="fp16", verify=False)
    found = weights_of(read_header(made.file("model")))
    window, full = 2 * 2 * (16 + 16), 2 * 2 * (32 + 32)
    assert found.cell[4:] == (0, 0, 0) and all(window <= cell <= full for cell in found.cell[:4])
    assert found.input >= 784 * 2 * (64 + 7 * 24) > found.output


FULL_AT_THE_END = [*["sliding_attention"] * 4, *["full_attention"] * 3]


@pytest.mark.parametrize(
    ("file", "where", "value", "reason"),
    [
        ("config.json", "text_config.enable_moe_block", True, "only False"),
        ("config.json", "text_config.attention_bias", True, "only False"),
        ("config.json", "text_config.use_bidirectional_attention", "all", "only 'vision' and null"),
        ("config.json", "text_config.hidden_activation", "silu", "only 'gelu_pytorch_tanh'"),
        ("config.json", "text_config.layer_types", FULL_AT_THE_END, "must be sliding_attention and full"),
        ("config.json", "text_config.layer_types", ["full_attention"] * 2, "list of 7 items"),
        ("config.json", "text_config.per_layer_config.3.head_dim", 64, "layers of one kind"),
        ("config.json", "text_config.vocab_size_per_layer_input", 9, "only 784"),
        ("config.json", "text_config.pad_token_id", 1, "only 0"),
        ("config.json", "text_config.rope_parameters.full_attention.rope_type", "linear", "only 'proportional'"),
        ("config.json", "text_config.rope_parameters.sliding_attention.rope_type", "linear", "only 'default'"),
        ("config.json", "vision_config.head_dim", 32, "libmtmd expects"),
        ("config.json", "vision_config.num_key_value_heads", 2, "only 4"),
        ("config.json", "vision_config.rope_parameters.rope_theta", 50.0, "only 100.0"),
        ("preprocessor_config.json", "do_normalize", True, "only False"),
        ("preprocessor_config.json", "resample", 2, "only 3"),
        ("preprocessor_config.json", "patch_size", 16, "only 4"),
        ("preprocessor_config.json", "max_soft_tokens", 140, "240 positions"),
    ],
)
def test_refused(file: str, where: str, value: Any, reason: str, checkpoint: Path) -> None:
    put(checkpoint / file, {where: value})
    with pytest.raises(CheckpointError) as found:
        parts(checkpoint)
    assert reason in str(found.value)
