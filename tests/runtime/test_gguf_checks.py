"""What contradicts itself in a GGUF header is refused by name, before native code sees the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from pocketvlm.errors import ModelFormatError
from pocketvlm.files.gguf_decoder import check_decoder, check_known_decoder
from pocketvlm.files.gguf_header import GGUFHeader, TensorInfo, read_header
from pocketvlm.files.gguf_vocabulary import check_vocabulary, require_vocabulary
from pocketvlm.native import library
from pocketvlm.vision.encoder_tensors import check_values
from pocketvlm.vision.families import check

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
F16, I32 = 1, 26  # GGML_TYPE_F16, GGML_TYPE_I32


@pytest.fixture(scope="module")
def model(iota_bundle: Path) -> GGUFHeader:
    return read_header(next(iota_bundle.glob("model-*.gguf")))


@pytest.fixture(scope="module")
def mmproj(iota_bundle: Path) -> GGUFHeader:
    return read_header(next(iota_bundle.glob("mmproj-*.gguf")))


def with_values(header: GGUFHeader, **values: Any) -> GGUFHeader:
    """Set keys, in which `__` stands for a dot; None removes one."""
    prefix = "clip.vision" if header.is_projector else header.architecture
    changes = {f"{prefix}.{key.replace('__', '.')}": value for key, value in values.items()}
    metadata = {**header.metadata, **changes}
    return replace(header, metadata={key: value for key, value in metadata.items() if value is not None})


def with_tensor(header: GGUFHeader, number: int, *new: TensorInfo) -> GGUFHeader:
    """Put `new` in the place of a tensor."""
    return replace(header, tensors=header.tensors[:number] + new + header.tensors[number + 1 :])


# --- hyperparameters


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"block_count": 0}, "block_count is 0: expected 1 to 512"),
        ({"block_count": 513}, "block_count is 513"),
        ({"block_count": None}, "block_count is None: expected an integer"),
        ({"nextn_predict_layers": 99}, "nextn_predict_layers is 99"),
        ({"attention__head_count_kv": 5}, "head_count_kv is 5: head_count . is not a multiple of 5"),
        (
            {"attention__head_count": 5, "attention__head_count_kv": 5, "attention__key_length": None},
            "embedding_length",
        ),
        ({"rope__dimension_count": 1 << 10}, "dimension_count is 1024: expected 0 to"),
        ({"rope__dimension_count": 3}, "dimension_count is 3: .* even"),
        ({"rope__dimension_count_swa": 3}, "dimension_count_swa is 3: .* even"),
        ({"rope__scaling__type": "cubic"}, "scaling.type is 'cubic': expected one of none, linear"),
        ({"rope__freq_base": float("nan")}, "freq_base is nan"),
        ({"rope__dimension_sections": [0, 0, 0, 0]}, "dimension_sections"),
        ({"rope__dimension_sections": [-1, 2, 2, 0]}, "dimension_sections"),
        ({"rope__dimension_sections": [4096, 2, 2, 0]}, "dimension_sections is .*together more than"),
        ({"attention__layer_norm_rms_epsilon": float("inf")}, "epsilon is inf"),
        ({"expert_count": 1025}, "expert_count is 1025"),
        ({"expert_count": 8}, "expert_used_count"),
        ({"expert_used_count": 2}, "expert_used_count is 2: no experts"),
        ({"expert_count": 8, "expert_used_count": 9}, "expert_used_count is 9: expected 1 to expert_count, 8"),
        ({"expert_count": 8, "expert_used_count": 2, "expert_group_count": 3}, "not a multiple"),
        ({"expert_count": 8, "expert_used_count": 2, "expert_group_count": 8}, "expert_group_count is 8"),
        ({"attention__sliding_window_pattern": [True] * 4, "attention__shared_kv_layers": 2}, "shared_kv_layers is 2"),
        ({"attention__sliding_window_pattern": [True] * 4, "attention__shared_kv_layers": 4}, "shared_kv_layers is 4"),
        ({"shortconv__l_cache": 1}, "l_cache is 1"),
        ({"n_deepstack_layers": 4}, "4 deepstack layers of 4"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_hyperparameters(values: dict[str, Any], words: str, model: GGUFHeader) -> None:
    assert model.metadata["llama.block_count"] == 4
    with pytest.raises(ModelFormatError, match=words) as error:
        check_decoder(with_values(model, **values))
    assert error.value.path == model.path


def test_sound_hyperparameters(model: GGUFHeader) -> None:
    experts = {"expert_count": 8, "expert_used_count": [2] * 4, "expert_group_count": 4, "expert_group_used_count": 2}
    windows = {"attention__sliding_window_pattern": [True, False, True, False], "attention__shared_kv_layers": 2}
    states = {"attention__head_count": [0, 4, 0, 4], "attention__head_count_kv": [0, 2, 0, 2]}
    check_decoder(model)
    check_decoder(with_values(model, **experts, **windows, shortconv__l_cache=3))
    check_decoder(with_values(model, **states))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"attention__head_count": 0}, "head_count is 0"),
        (
            {"attention__head_count": 6, "attention__head_count_kv": 6},
            r"attn_.\.weight is for .* have 384",
        ),
        ({"attention__value_length": 8}, "value_length is 8: expected the width of keys"),
        ({"attention__sliding_window_pattern": [False] * 4}, "at least one layer with a window"),
        ({"attention__value_length": None, "embedding_length": 96}, "value_length is None: expected"),
        ({"rope__dimension_count": 8}, "dimension_count is 8: expected"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_unusual_hyperparameters(values: dict[str, Any], words: str, model: GGUFHeader) -> None:
    check_known_decoder(model)
    with pytest.raises(ModelFormatError, match=words):
        check_known_decoder(with_values(model, **values))


@pytest.mark.parametrize("kind", [F16, I32])
def test_vectors_are_float32(kind: int, model: GGUFHeader) -> None:
    number = next(i for i, tensor in enumerate(model.tensors) if tensor.name == "blk.0.attn_norm.weight")
    with pytest.raises(ModelFormatError, match=r"'blk\.0\.attn_norm\.weight' has the type .*, expected F32"):
        check_known_decoder(with_tensor(model, number, replace(model.tensors[number], type=kind)))


# --- vocabularies


def vocabulary(
    path: Path, tokens: Sequence[str | bytes], *, kind: str = "llama", types: Sequence[int] = (), **lists: Any
) -> GGUFHeader:
    writer = GGUFWriter(path / "vocabulary.gguf", "llama")
    writer.add_tokenizer_model(kind)
    if tokens:
        writer.add_token_list(tokens)
    if types:
        writer.add_token_types(types)
    for name, values in lists.items():
        writer.add_array(f"tokenizer.ggml.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return read_header(path / "vocabulary.gguf")


@pytest.mark.parametrize(
    ("tokens", "more", "words"),
    [
        ([], {}, "tokens is missing"),
        (["a", "b", "a"], {}, "'a' twice, as entries 0 and 2"),
        (["a", "b", b"a\0b"], {}, "'a' twice, as entries 0 and 2"),
        (["[EMPTY_1]", ""], {}, r"'\[EMPTY_1\]' twice"),
        (BYTES[:-1], {}, "lacks <0xFF>"),
        (["a", "b"], {"kind": "gpt2", "types": [1]}, "token_type has 1 entries for 2 tokens"),
        (["a", "b"], {"kind": "gpt2", "scores": [0.5]}, "scores has 1 entries for 2 tokens"),
        (["a", "b"], {"kind": "gpt2", "merges": [1, 2]}, "merges is not a list of texts"),
        (["a", "b"], {"kind": "gpt2", "types": [1, 6]}, "token_type calls entry 1, 'b', a byte"),
        (["a"], {"kind": "t5"}, "such a model cannot chat"),
    ],
)
def test_vocabularies(tokens: list[str | bytes], more: dict[str, Any], words: str, tmp_path: Path) -> None:
    header = vocabulary(tmp_path, tokens, **more)
    with pytest.raises(ModelFormatError, match=f"tokenizer.ggml.*{words}"):
        check_vocabulary(header)


def test_sound_vocabularies(tmp_path: Path, model: GGUFHeader) -> None:
    check_vocabulary(model)
    check_vocabulary(vocabulary(tmp_path, ["", "a", "", *BYTES], types=[1, 1, 5, *[6] * 256]))
    check_vocabulary(vocabulary(tmp_path, [*BYTES[:-1], b"\xff"]))


def test_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    """Its memory can be predicted."""
    header = vocabulary(tmp_path, [], kind="no_vocab")
    check_vocabulary(header)
    with pytest.raises(ModelFormatError, match="'no_vocab': such a model cannot chat"):
        require_vocabulary(header)


def test_a_file_without_a_tokenizer(model: GGUFHeader) -> None:
    metadata = {key: value for key, value in model.metadata.items() if key != "tokenizer.ggml.model"}
    with pytest.raises(ModelFormatError, match=r"tokenizer\.ggml\.model is missing"):
        check_vocabulary(replace(model, metadata=metadata))


def test_texts_across_blocks(tmp_path: Path) -> None:
    """Of a vocabulary that is read in several blocks, and of texts longer than one."""
    tokens = [f"token {number}" * (1 + number % 7) for number in range(30_000)] + ["x" * 3_000_000, "y"]
    header = vocabulary(tmp_path, tokens)
    assert header.texts("tokenizer.ggml.tokens") == [token.encode() for token in tokens]
    assert header.array("tokenizer.ggml.tokens") == tokens


def test_a_tensor_without_dimensions(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("scalar", np.array(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = read_header(tmp_path / "x.gguf").tensors
    assert tensor.shape == (1,) and tensor.n_bytes == 4


# --- encoders


@pytest.mark.parametrize(
    ("key", "kind"),
    [("clip.vision.block_count", 10), ("clip.use_gelu", 4), ("clip.vision.attention.layer_norm_epsilon", 12)],
)
def test_types_of_values(key: str, kind: int, mmproj: GGUFHeader) -> None:
    check_values(mmproj)
    with pytest.raises(ModelFormatError, match=f"{key} is .*, expected"):
        check_values(replace(mmproj, types={**mmproj.types, key: kind}))


@pytest.mark.parametrize("epsilon", [-1e-6, float("nan"), float("inf")])
def test_an_epsilon(epsilon: float, mmproj: GGUFHeader) -> None:
    with pytest.raises(ModelFormatError, match=r"layer_norm_epsilon is .*, expected 0 or more"):
        check_values(with_values(mmproj, attention__layer_norm_epsilon=epsilon))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"block_count": 3}, "has 4 layers, clip.vision.block_count is 3"),
        ({"block_count": 5}, r"lacks the tensor v\.blk\.4\."),
        ({"attention__head_count": 7}, "head_count is 7: clip.vision.embedding_length 128 is not a multiple"),
        ({"attention__head_count": 0}, "head_count is 0, expected 1 to"),
        ({"embedding_length": 64}, "has the shape"),
        ({"feed_forward_length": 64}, r"ffn_up\.\w+ has the shape"),
        ({"image_size": 48}, r"position_embd\.weight has the shape"),
        ({"patch_size": 16}, r"patch_embd\.weight has the shape"),
        ({"projector__scale_factor": 1}, "scale_factor is 1, expected 2 to"),
        ({"projector__scale_factor": 4}, r"mm\.model\.fc\.weight has the shape"),
        ({"projection_dim": 1 << 20}, "projection_dim is 1048576, expected"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_sizes_of_an_encoder(values: dict[str, Any], words: str, mmproj: GGUFHeader, model: GGUFHeader) -> None:
    check(mmproj, model)
    with pytest.raises(ModelFormatError, match=words) as error:
        check(with_values(mmproj, **values), model)
    assert error.value.path == mmproj.path


def test_a_layer_of_many_digits(mmproj: GGUFHeader, model: GGUFHeader) -> None:
    changed = replace(mmproj.tensors[0], name=f"v.blk.{'9' * 5000}.ln1.weight")
    with pytest.raises(ModelFormatError, match=r"has a tensor 'v\.blk\.9.{,200}', which such encoders do not have$"):
        check(with_tensor(mmproj, 0, changed), model)


def test_an_abort_starts_no_debugger() -> None:
    library.llama()
    assert os.environ["GGML_NO_BACKTRACE"] == "1"
