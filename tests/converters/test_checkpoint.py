"""A checkpoint that cannot be converted is refused with the name of what is wrong, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers.image_processing_base import ImageProcessingMixin

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Checkpoint, Tensor
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import find_family
from store import Store

Edit = Callable[..., None]


def refused(folder: Path, *wanted: str, **options: Any) -> None:
    before = sorted(folder.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert(folder, folder.parent / "bundle", **options)
    for text in wanted:
        assert text in str(caught.value)
    assert sorted(folder.parent.iterdir()) == before


def rewrite(path: Path, change: Callable[[dict[str, Any], bytearray], None]) -> None:
    """Change the header and data of a safetensors file."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:start]), bytearray(raw[start:])
    change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def weights(checkpoint: Path) -> Path:
    return checkpoint / "model.safetensors"


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such checkpoint folder")


def test_a_file_instead_of_a_folder(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        convert(weights, tmp_path / "bundle")


def test_missing_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    refused(checkpoint, "config.json")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_broken_config(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(checkpoint, "config.json")


def test_unknown_architecture(checkpoint: Path, edit: Edit) -> None:
    edit(checkpoint / "config.json", {"model_type": "clippy"})
    refused(checkpoint, "unknown architecture 'clippy'", "idefics3", "smolvlm")
    edit(checkpoint / "config.json", {"model_type": "granite_docling"})
    refused(checkpoint, "model_type granite_docling is a", "use ibm-granite/granite-docling-258M")


def test_no_weights(weights: Path) -> None:
    weights.rename(weights.with_name("pytorch_model.bin"))
    refused(weights.parent, "model.safetensors", "not pytorch_model.bin", "python -c ", "save_pretrained('FOLDER')")


def test_missing_shard(tmp_path: Path, make_model: Any, save: Any) -> None:
    save(make_model(), tmp_path / "checkpoint", max_shard_size="100KB")
    shard = sorted((tmp_path / "checkpoint").glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path / "checkpoint", shard.name, "shard is missing")


def test_tensor_missing_from_its_shard(tmp_path: Path, make_model: Any, save: Any) -> None:
    folder = tmp_path / "checkpoint"
    save(make_model(), folder, max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.extra.weight"] = next(iter(data["weight_map"].values()))
    index.write_text(json.dumps(data))
    refused(folder, "model.extra.weight is missing")


@pytest.mark.parametrize(
    "name",
    [
        "model.text_model.layers.1.self_attn.k_proj.weight",
        "model.vision_model.encoder.layers.0.layer_norm2.bias",
        "model.connector.modality_projection.proj.weight",
        "model.text_model.embed_tokens.weight",
    ],
)
def test_missing_tensor(weights: Path, name: str) -> None:
    def drop(header: dict[str, Any], data: bytearray) -> None:
        begin, end = header.pop(name)["data_offsets"]
        del data[begin:end]
        for entry in header.values():
            if "data_offsets" in entry and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [at - (end - begin) for at in entry["data_offsets"]]

    rewrite(weights, drop)
    refused(weights.parent, name, "is missing")


def test_untied_without_a_head(checkpoint: Path, edit: Edit) -> None:
    edit(checkpoint / "config.json", {"tie_word_embeddings": False})
    refused(checkpoint, "lm_head.weight is missing")


def test_a_tensor_that_nobody_asked_for(weights: Path) -> None:
    def add(header: dict[str, Any], data: bytearray) -> None:
        data += bytes(4)
        header["model.resampler.weight"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data) - 4, len(data)]}

    rewrite(weights, add)
    refused(weights.parent, "model.resampler.weight is not part of")


def test_wrong_shape(checkpoint: Path, edit: Edit) -> None:
    edit(checkpoint / "config.json", {"text_config.num_key_value_heads": 4})
    refused(checkpoint, "self_attn.k_proj.weight is (32, 64)", "(64, 64)")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["model.text_model.layers.1.mlp.up_proj.weight", "model.vision_model.post_layernorm.bias"]
)
def test_weights_that_are_not_numbers(weights: Path, name: str, value: float) -> None:
    def spoil(header: dict[str, Any], data: bytearray) -> None:
        end = header[name]["data_offsets"][1]
        data[end - 4 : end] = np.float32(value).tobytes()

    rewrite(weights, spoil)
    refused(weights.parent, name, "NaN or infinite")


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_bfloat16_that_is_not_a_number(bits: int) -> None:
    sound = np.full((3, 4), 0x7F7F, np.uint16)  # the largest finite one
    assert len(list(Tensor("sound", sound).blocks())) == 1
    sound[2, 3] = bits
    with pytest.raises(CheckpointError, match="tensor spoilt"):
        list(Tensor("spoilt", sound).blocks())


def test_float16_overflow(weights: Path) -> None:
    name = "model.text_model.layers.0.mlp.up_proj.weight"

    def enlarge(header: dict[str, Any], data: bytearray) -> None:
        begin = header[name]["data_offsets"][0]
        data[begin : begin + 4] = np.float32(70000).tobytes()

    rewrite(weights, enlarge)
    refused(weights.parent, name, "beyond float16", quantize="f16")


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -5000])
def test_truncated_safetensors(weights: Path, keep: int) -> None:
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(weights.parent, "model.safetensors")


def test_not_safetensors(weights: Path) -> None:
    weights.write_bytes(b"hello, I am a picture, honestly" * 10)
    refused(weights.parent, "truncated or not safetensors")


def test_unreadable_type(weights: Path) -> None:
    rewrite(weights, lambda header, _: header["model.text_model.norm.weight"].update(dtype="U32"))
    refused(weights.parent, "model.text_model.norm.weight is U32; only F32")


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {}},
        {"quantization_config": 7},
        {"compression_config": {"format": "pack-quantized"}},
        {"text_config.quantization_config": {"quant_method": "awq"}},
    ],
)
def test_a_quantization_that_is_only_mentioned(change: dict[str, Any], weights: Path, edit: Edit) -> None:
    """Weights that are floating point are converted, with a note; others must be what the method says."""
    edit(weights.parent / "config.json", change)
    assert ["quantization" in note for note in Checkpoint(weights.parent).notes] == [True]
    find_family(Checkpoint(weights.parent)).language()
    rewrite(weights, lambda header, _: header["model.text_model.norm.weight"].update(dtype="I32"))
    refused(weights.parent, "model.text_model.norm.weight")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_model.model.model.text_model.norm.weight", "give the folder that PEFT saves with lora="),
        ("model.text_model.layers.0.self_attn.q_proj.base_layer.weight", "give the folder that PEFT saves with lora="),
        (
            "model.text_model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "give the folder that PEFT saves with lora=",
        ),
        ("v_head.summary.weight", "is not part of a idefics3 model: it is a value head"),
        ("score.weight", "is not part of a idefics3 model: it is a value head"),
        ("model.text_model.norm.qweight", "is already quantized"),
    ],
)
def test_tensors_of_a_fine_tuning(name: str, words: str, weights: Path) -> None:
    tensors = load_file(weights)
    save_file({**tensors, name: np.zeros((2, 2), np.float32)}, weights)
    refused(weights.parent, words)


def test_double_precision(weights: Path) -> None:
    tensors = load_file(weights)
    save_file({name: tensor.astype(np.float64) for name, tensor in tensors.items()}, weights)
    refused(weights.parent, "is F64; ", "save the checkpoint in float32 first")


@pytest.mark.parametrize("stray", ["older", "quantized", "alone"])
def test_a_single_file_beside_shards(stray: str, make_model: Any, save: Any, tmp_path: Path) -> None:
    """transformers reads the single file, and so do we: a note or the error says what is not used."""
    save(make_model(), tmp_path / "c", max_shard_size="100KB")
    tensors = {name: tensor for shard in (tmp_path / "c").glob("model-*") for name, tensor in load_file(shard).items()}
    if stray == "quantized":
        tensors = {name: tensor.astype(np.uint8) for name, tensor in tensors.items()}
    for shard in (tmp_path / "c").glob("model-*") if stray == "alone" else ():
        shard.unlink()
    save_file(tensors, tmp_path / "c" / "model.safetensors")
    if stray == "quantized":
        refused(tmp_path / "c", "model.safetensors: tensor ", "is U8; ", "not model-00001-of-", "remove the one")
        return
    notes = Checkpoint(tmp_path / "c").notes
    assert ["model-00001-of-" in note for note in notes] == [True] * (stray == "older")


@pytest.mark.parametrize(
    ("family", "key", "old", "new"),
    [
        (
            "qwen2_5_vl",
            "size",
            {"shortest_edge": 3136, "longest_edge": 12845056},
            {"shortest_edge": 3136, "longest_edge": 12544},
        ),
        ("llava", "image_mean", [0.5, 0.5, 0.5], [0.4, 0.3, 0.2]),
        ("internvl", "max_patches", 12, 2),
        ("smolvlm", "size", {"longest_edge": 64}, {"longest_edge": 96}),
    ],
)
def test_two_files_of_an_image_processor(
    family: str, key: str, old: Any, new: Any, store: Store, tmp_path: Path
) -> None:
    """transformers reads processor_config.json first; a note names what differs."""
    folder = Path(shutil.copytree(store.checkpoint(family), tmp_path / "checkpoint"))
    settings = dict(Checkpoint(folder).preprocessor.values)
    preprocessor, processor = folder / "preprocessor_config.json", folder / "processor_config.json"
    for nested, outer in ((new, old), (new, new), (new, None), (None, new)):
        base = json.loads(processor.read_text()) if processor.exists() else {}
        base["image_processor"] = nested and {**settings, key: nested}
        processor.write_text(json.dumps(base))
        preprocessor.unlink(missing_ok=True)
        if outer:
            preprocessor.write_text(json.dumps({**settings, key: outer, "image_processor_type": "Other"}))
        checkpoint = Checkpoint(folder)
        reference, _ = ImageProcessingMixin.get_image_processor_dict(folder)
        assert checkpoint.preprocessor.values[key] == reference[key] == new
        assert [note.endswith(f"differs in {key}") for note in checkpoint.notes] == [True] * (outer == old)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"text_config.rope_parameters.rope_type": "yarn"}, "rope scaling 'yarn'"),
        ({"text_config.rope_parameters.partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"text_config.hidden_act": "gelu"}, "text_config.hidden_act is 'gelu'"),
        ({"text_config.model_type": "mamba"}, "text_config.model_type is 'mamba'"),
        ({"text_config.hidden_size": "64"}, "text_config.hidden_size is '64'; expected int"),
        ({"text_config": None}, "text_config is missing"),
        ({"vision_config.hidden_act": "gelu"}, "vision_config.hidden_act is 'gelu'"),
        ({"vision_config.num_channels": 1}, "vision_config.num_channels is 1"),
        ({"vision_config.intermediate_size": 64}, "intermediate_size is 64; an MLP as wide as the encoder"),
        ({"scale_factor": 3}, "not a multiple of scale_factor"),
    ],
)
def test_what_the_runtime_cannot_compute(checkpoint: Path, edit: Edit, changes: dict[str, Any], wanted: str) -> None:
    edit(checkpoint / "config.json", changes)
    refused(checkpoint, wanted)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"image_processor.do_image_splitting": False}, "do_image_splitting is False"),
        ({"image_processor.max_image_size.longest_edge": 64}, "max_image_size.longest_edge is 64"),
        ({"image_processor.image_mean": [0.5]}, "image_mean must have three numbers"),
        ({"image_processor.image_std": [0.5, 0.5, "x"]}, "image_std is [0.5, 0.5, 'x']; must be a list of numbers"),
        ({"image_processor": None}, "preprocessor_config.json"),
    ],
)
def test_other_preprocessing(checkpoint: Path, edit: Edit, changes: dict[str, Any], wanted: str) -> None:
    edit(checkpoint / "processor_config.json", changes)
    refused(checkpoint, wanted)


def test_source_is_the_listing_of_sha256sum(pristine: Path) -> None:
    import hashlib

    source = Checkpoint(pristine).source
    listing = "".join(
        f"{hashlib.sha256((pristine / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(source.files)
    )
    assert source.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert {"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"} <= set(source.files)
