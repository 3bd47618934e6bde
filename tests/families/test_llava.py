"""What is LLaVA's own: the layer that is taken, the class token, the files of the hub, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import change, mmproj, onnx_encoder, parts, put, refusal, same, worst
from pocketvlm.errors import EngineError
from pocketvlm.native import mtmd, mtmd_graph_patches
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model
from tiny import llava as tiny

pytestmark = pytest.mark.oracle

TOKENS = (tiny.TILE // tiny.PATCH) ** 2
TILE = np.random.default_rng(0).integers(0, 256, (tiny.TILE, tiny.TILE, 3), np.uint8)
# As LLaVA 1.5 has it on the hub, but for the sizes; whatever is transformers' default is not there.
SPARSE = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 760,
    "model_type": "llava",
    "pad_token_id": 761,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 770,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {**tiny.VISION, "model_type": "clip_vision_model", "projection_dim": 768, "vocab_size": 32000},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}


@pytest.fixture(scope="module")
def changes() -> dict[str, Any]:
    return {"text": {"num_key_value_heads": 4}}


def wanted(model: Any, tile: Any = TILE) -> Any:
    mean, std = np.array([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    pixels = torch.from_numpy((tile / 255 - mean) / std).permute(2, 0, 1).float()[None]
    with torch.no_grad():
        return model.get_image_features(pixels).pooler_output[0].numpy()


def encoded(path: Path, bundle: Path, meanwhile: Callable[[], Any] = lambda: None) -> Any:
    with (
        Model(bundle / "model-F32.gguf") as language,
        mtmd.Mtmd(path, language, threads=1, tile_tokens=TOKENS) as encoder,
    ):
        meanwhile()
        return encoder.encode_tile(TILE)


def test_the_files_of_the_hub_say_the_same_in_fewer_words(checkpoint: Path, pristine: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps(SPARSE))
    language, projector = parts(checkpoint)
    assert {key: language.metadata[f"llama.{key}"] for key in ("context_length", "rope.freq_base")} == {
        "context_length": 4096,
        "rope.freq_base": 10000.0,
    }
    put(checkpoint / "config.json", {"text_config.rope_theta": 5000.0, "text_config.max_position_embeddings": 2048})
    assert same(parts(checkpoint), parts(pristine))
    assert projector.metadata["clip.vision.block_count"] == 2
    assert projector.metadata["clip.vision.feature_layer"] == [2]


@pytest.mark.parametrize("layer", [-1, 1, 3])
def test_any_one_layer(checkpoint: Path, bundle: Path, tmp_path: Path, reference: Any, layer: int) -> None:
    put(checkpoint / "config.json", {"vision_feature_layer": layer})
    reference.config.vision_feature_layer = layer
    try:
        rows = wanted(reference)
    finally:
        reference.config.vision_feature_layer = -2
    assert worst(encoded(mmproj(checkpoint, "f32", tmp_path), bundle), rows) >= 0.9999
    assert worst(onnx_encoder(checkpoint, "fp32", tmp_path).encode_tile(TILE), rows) >= 0.9999


@pytest.mark.parametrize(("kind", "least"), [("f16", 0.9999), ("q8_0", 0.998)])
def test_mmproj_types(kind: Any, least: float, pristine: Path, bundle: Path, reference: Any, tmp_path: Path) -> None:
    assert worst(encoded(mmproj(pristine, kind, tmp_path), bundle), wanted(reference)) >= least


@pytest.mark.parametrize(("kind", "least"), {"fp16": 0.9999, "int8": 0.998, "int4": 0.9}.items())
def test_onnx_types(kind: Any, least: float, pristine: Path, reference: Any, tmp_path: Path) -> None:
    rows = onnx_encoder(pristine, kind, tmp_path).encode_tile(TILE)
    assert worst(rows, wanted(reference)) >= least


def test_libmtmd_still_misplaces_the_class_token(bundle: Path, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this fails, libmtmd does it right by itself, and native.mtmd_graph_patches can go."""
    rows, path = wanted(reference), bundle / "mmproj-f32.gguf"
    assert worst(encoded(path, bundle), rows) >= 0.9999
    assert worst(encoded(path, bundle, meanwhile=Collector), rows) >= 0.9999, "another one that looks at nodes"
    monkeypatch.setattr(mtmd, "_GRAPH_PATCHES", {})
    assert worst(encoded(path, bundle), rows) < 0.9


def test_a_mend_that_found_nothing_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtmd_graph_patches, "CLASS_TOKEN", "v.another_name")
    with pytest.raises(EngineError, match=r"mmproj-f32\.gguf: this build of libmtmd builds the graph"):
        encoded(bundle / "mmproj-f32.gguf", bundle)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "layers": (lambda c: c.update(vision_feature_layer=[-2, -1]), "vision_feature_layer is [-2, -1]"),
    "no layer": (lambda c: c.update(vision_feature_layer=0), "vision_feature_layer is 0"),
    "too deep": (lambda c: c.update(vision_feature_layer=-5), "vision_feature_layer is -5"),
    "class token": (lambda c: c.update(vision_feature_select_strategy="full"), "'default' is supported"),
    "projector": (lambda c: c.update(projector_hidden_act="relu"), "projector_hidden_act is 'relu'"),
    "no bias": (lambda c: c.update(multimodal_projector_bias=False), "multimodal_projector_bias is False"),
    "tower": (lambda c: c["vision_config"].update(model_type="dinov2"), "vision_config.model_type is 'dinov2'"),
    "activation": (lambda c: c["vision_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "patch": (lambda c: c["vision_config"].update(patch_size=60), "patch_size is 60"),
    "decoder": (lambda c: c["text_config"].update(model_type="phi"), "text_config.model_type is 'phi'"),
    "window": (
        lambda c: c["text_config"].update(model_type="mistral", sliding_window=1024),
        "text_config.sliding_window is 1024",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path) -> None:
    work, message = REFUSED[name]
    assert message in refusal(checkpoint, work)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": {"shortest_edge": 28}}, "size.shortest_edge is 28"),
        ({"size": {"height": 28, "width": 56}}, "size.height is 28"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"crop_size": {"height": 56, "width": 28}}, "crop_size.width is 28"),
        ({"resample": 2}, "resample is 2"),
        ({"do_rescale": False}, "do_rescale is False"),
    ],
)
def test_refused_preprocessing(values: dict[str, Any], message: str, checkpoint: Path) -> None:
    told = refusal(checkpoint, lambda found: found["image_processor"].update(values), "processor_config.json")
    assert message in told


def test_bars_are_only_for_the_processor_that_has_them(checkpoint: Path) -> None:
    path = checkpoint / "processor_config.json"
    for named, fit in (("CLIPImageProcessor", "crop"), ("LlavaImageProcessor", "pad")):
        put(path, {"image_processor.do_pad": True, "image_processor.image_processor_type": named})
        assert parts(checkpoint)[1].metadata["pocketvlm.image_fit"] == fit


def test_a_window_as_long_as_the_context_is_none(checkpoint: Path) -> None:
    for window in (None, 2048):
        put(checkpoint / "config.json", {"text_config.model_type": "mistral", "text_config.sliding_window": window})
        assert parts(checkpoint)[0].architecture == "llama"
    change(checkpoint / "config.json", lambda config: config["text_config"].pop("sliding_window"))
    assert parts(checkpoint)[0].architecture == "llama", "transformers' default is 4096, the context 2048"
