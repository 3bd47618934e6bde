"""Gemma 3 where its files differ from what transformers saves, where it is refused, and its quantized encoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from checkpoints import change, least_of, mmproj, onnx_encoder, parts, put, rename, same, worst
from engine_seam import units_of
from pocketvlm import VLM
from pocketvlm.errors import CheckpointError, ContextLengthError, RequestError
from pocketvlm.files.gguf_header import read_header
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.native.token_embeddings import token_embeddings
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.convert import convert
from tiny import gemma3 as tiny

pytestmark = pytest.mark.oracle

# As the 4B model's config.json has it: whatever is transformers' default is not there.
SPARSE_TEXT = {
    "model_type": "gemma3_text",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 7,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
SPARSE_PREPROCESSOR = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 16,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": tiny.TILE, "width": tiny.TILE},
}


def test_the_files_of_the_hub_say_the_same_in_fewer_words(tmp_path: Path) -> None:
    vision = {k: v for k, v in tiny.VISION.items() if k != "num_channels"}
    config = Gemma3Config(text_config=SPARSE_TEXT, vision_config=vision, mm_tokens_per_image=16)
    tiny.save(Gemma3ForConditionalGeneration(config).to(torch.bfloat16), tmp_path / "full")
    sparse = Path(shutil.copytree(tmp_path / "full", tmp_path / "sparse"))
    listed = {"model_type": "gemma3", "mm_tokens_per_image": 16, "text_config": SPARSE_TEXT, "vision_config": vision}
    (sparse / "config.json").write_text(json.dumps(listed))
    (sparse / "preprocessor_config.json").write_text(json.dumps(SPARSE_PREPROCESSOR))
    (sparse / "processor_config.json").write_text(json.dumps({"image_seq_length": 16}))
    found = parts(tmp_path / "full")
    assert same(found, parts(sparse))
    wanted = {
        "block_count": 7,
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "attention.key_length": 256,
        "vocab_size": 262208,
        "context_length": 131072,
        "attention.sliding_window": 1024,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.scaling.factor": 8.0,
    }
    assert {key: found[0].metadata[f"gemma3.{key}"] for key in wanted} == wanted


def test_configurations_before_transformers_5(pristine: Path, checkpoint: Path) -> None:
    def back(config: dict[str, Any]) -> None:
        text = config["text_config"]
        ropes = text.pop("rope_parameters")
        text["rope_theta"] = ropes["full_attention"].pop("rope_theta")
        text["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        text["rope_scaling"] = ropes["full_attention"]
        del text["layer_types"], text["_sliding_window_pattern"]

    change(checkpoint / "config.json", back)
    assert same(parts(checkpoint), parts(pristine))
    change(checkpoint / "config.json", lambda config: config["text_config"].update(sliding_window_pattern=3))
    metadata = parts(checkpoint)[0].metadata
    assert metadata["gemma3.attention.sliding_window_pattern"] == [True, True, False] * 2 + [True, True]


def test_every_naming_is_the_same_model(pristine: Path, checkpoint: Path, reference: Any) -> None:
    in_memory = {tiny.hub_name(name): name for name, _ in reference.named_parameters()}
    rename(checkpoint, lambda name: name.replace("vision_tower.", "vision_tower.vision_model."))
    assert set(Checkpoint(checkpoint).tensors) == set(in_memory)
    assert same(parts(checkpoint), parts(pristine))
    rename(checkpoint, in_memory.__getitem__)
    assert same(parts(checkpoint), parts(pristine))
    rename(checkpoint, lambda name: name.removeprefix("model."))  # the model without its head
    assert same(parts(checkpoint), parts(pristine))


def test_the_encoders_own_head_is_left_out(tmp_path: Path, pristine: Path) -> None:
    tiny.save(tiny.model(vision={"vision_use_head": True}), tmp_path / "checkpoint")
    assert any(".head." in name for name in Checkpoint(tmp_path / "checkpoint").tensors)
    names = [[weight.name for weight in part.weights] for part in parts(tmp_path / "checkpoint")]
    assert names == [[weight.name for weight in part.weights] for part in parts(pristine)]


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("file", "where", "value", "reason"),
    [
        ("config", "text_config.query_pre_attn_scalar", 24, "query_pre_attn_scalar is 24; libllama assumes 32"),
        ("config", "text_config.attn_logit_softcapping", 50.0, "attn_logit_softcapping is 50.0"),
        ("config", "text_config.final_logit_softcapping", 30.0, "final_logit_softcapping is 30.0"),
        ("config", "text_config.attention_bias", True, "attention_bias is True"),
        ("config", "text_config.use_bidirectional_attention", True, "use_bidirectional_attention is True"),
        ("config", "text_config.hidden_activation", "silu", "hidden_activation is 'silu'"),
        ("config", "text_config.layer_types", ["chunked_attention"] * 8, "layer_types is"),
        ("config", "text_config.layer_types", [["full_attention"]] * 8, "layer_types is"),
        ("config", "text_config.layer_types", ["full_attention"] * 7, "list of 8 items"),
        ("config", "text_config.sliding_window", 0, "sliding_window is 0"),
        (
            "config",
            "text_config.rope_parameters.sliding_attention",
            {"rope_type": "linear", "factor": 2.0},
            "rope scaling",
        ),
        ("config", "text_config.rope_parameters.full_attention", LLAMA3, "frequency factors"),
        ("config", "text_config.rope_parameters.full_attention.rope_type", "yarn", "'yarn' is not known"),
        ("config", "text_config.rope_parameters", {"rope_theta": 1.0}, "no other keys than sliding"),
        ("config", "vision_config.hidden_act", "relu", "vision_config.hidden_act is 'relu'"),
        ("config", "vision_config.model_type", "clip_vision_model", "'siglip_vision_model' is supported"),
        ("config", "mm_tokens_per_image", 15, "mm_tokens_per_image is 15; 8 x 8 patches"),
        ("config", "mm_tokens_per_image", 9, "mm_tokens_per_image is 9; 8 x 8 patches"),
        ("processor_config", "image_seq_length", 4, "image_seq_length is 4; only 16"),
        ("processor_config", "image_processor.do_pan_and_scan", True, "do_pan_and_scan is True"),
        ("processor_config", "image_processor.resample", 3, "resample is 3"),
        ("processor_config", "image_processor.size", {"height": 56, "width": 112}, "size.height is 56"),
    ],
)
def test_refused(checkpoint: Path, file: str, where: str, value: Any, reason: str) -> None:
    path = checkpoint / f"{file}.json"
    put(path, {where: value})
    with pytest.raises(CheckpointError) as found:
        parts(checkpoint)
    assert reason in str(found.value) and found.value.path == path


def noise() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (tiny.TILE, tiny.TILE, 3), np.uint8)


@pytest.fixture(scope="module")
def seen(reference: Any) -> np.ndarray[Any, Any]:
    pixels = torch.from_numpy(noise()).permute(2, 0, 1).float()[None] / 127.5 - 1.0
    with torch.no_grad():
        return reference.get_image_features(pixels).pooler_output[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "least"), least_of({"fp32": 0.99999, "fp16": 0.9999, "int8": 0.998, "int4": 0.95}))
def test_onnx_types(kind: str, least: float, pristine: Path, seen: Any, tmp_path: Path) -> None:
    assert worst(onnx_encoder(pristine, kind, tmp_path).encode_tile(noise()), seen) >= least


@pytest.mark.parametrize(("kind", "least"), [("f16", 0.9999), ("bf16", 0.998), ("q8_0", 0.998)])
def test_mmproj_types(kind: str, least: float, pristine: Path, bundle: Path, seen: Any, tmp_path: Path) -> None:
    with (
        Model(bundle / "model-F32.gguf") as language,
        Mtmd(mmproj(pristine, kind, tmp_path), language, threads=1, tile_tokens=len(seen)) as encoder,
    ):
        assert worst(encoder.encode_tile(noise()), seen) >= least


def message(**options: Any) -> list[dict[str, Any]]:
    picture = {"type": "image", "image": Image.fromarray(noise()), **options}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}]


SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
PICTURE = {"type": "image", "image": Image.fromarray(noise())}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, {"role": "user", "content": [PICTURE, text("What?")]}],
        [SYSTEM, {"role": "user", "content": [text("First\n"), PICTURE, text("\n\nlast"), PICTURE, PICTURE]}],
        [{"role": "user", "content": [text("Left"), PICTURE]}, {"role": "assistant", "content": [text("Yes.")]},
         {"role": "user", "content": [PICTURE, PICTURE, text("now?")]}],
    ],
    ids=["system", "between", "turns"],
)  # fmt: skip
def test_newlines_around_pictures_join_others(pristine: Path, bundle: Path, messages: list[dict[str, Any]]) -> None:
    """The blank lines of a picture's layout make longer tokens with those of template and text."""
    processor = tiny.processor(pristine)
    wanted = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    with VLM.load(bundle) as vlm:
        units = units_of(vlm, messages)
    soft = processor.tokenizer.image_token_id
    ids = [i for unit in units for i in ([unit] if isinstance(unit, int) else [soft] * unit.tokens)]
    assert ids == wanted["input_ids"][0]
    newlines = {"\n" * count for count in range(3, 9)}
    assert newlines & set(processor.tokenizer.convert_ids_to_tokens(ids))


def test_a_picture_must_fit_the_context(bundle: Path) -> None:
    """All of its tokens go through libllama at once, which ends the process where its batches are smaller."""
    for size in (8, 16, 20):
        with VLM.load(bundle, context_size=size) as vlm:  # libllama makes it 256
            assert vlm.chat(message(), max_tokens=2).usage.prompt_tokens < 64
            with pytest.raises(ContextLengthError, match="320 of them pictures"):
                vlm.chat(message() * 20)


def test_a_picture_larger_than_a_batch_of_text(tmp_path: Path) -> None:
    tiny.save(tiny.model(pooled=1, vision={"image_size": 28 * tiny.PATCH}), tmp_path / "checkpoint")
    made = convert(
        tmp_path / "checkpoint", tmp_path / "bundle", quantize="F16", mmproj="none", onnx="fp32", verify=False
    )
    with VLM.load(made.path) as vlm:
        assert vlm.chat(message(), max_tokens=2).usage.prompt_tokens > 28**2


def test_every_detail_costs_the_same(bundle: Path) -> None:
    with VLM.load(bundle) as vlm:
        answers = [vlm.chat(message(detail=detail), max_tokens=4) for detail in ("low", "high", "auto")]
        assert len({answer.text for answer in answers}) == 1
        with pytest.raises(RequestError, match="max_image_tokens is 15; this model needs 16"):
            vlm.chat(message(max_image_tokens=15))


def test_a_row_is_not_a_token(bundle: Path) -> None:
    """The model enlarges tokens, and takes what comes from a picture as it is."""
    file = bundle / "model-F32.gguf"
    with Model(file) as model, Context(model, n_ctx=256, n_batch=32, threads=1) as context:
        assert token_embeddings(model, read_header(file), context) is None
