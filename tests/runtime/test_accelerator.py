"""The accelerator of prompts: its products are those of blocks quantized as ggml does, and only prompts go to it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from pocketvlm.native import library
from pocketvlm.native.accelerator import LIBRARY, load
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.tensor import function

KERNELS = ("avx512-vnni", "avx-vnni", "avx2", "dotprod")
SUPERBLOCKS = ("Q4_K", "Q5_K", "Q6_K")
TYPES = ("Q8_0", "Q4_0", "Q5_0", "IQ4_NL", *SUPERBLOCKS)
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def native() -> ctypes.CDLL:
    accelerator = library.accelerator()
    if accelerator.library is None:
        pytest.skip(f"no accelerator: {accelerator.why}")
    return accelerator.library


@pytest.fixture(scope="module")
def kernels(native: ctypes.CDLL) -> list[str]:
    """Those for this CPU."""
    return [name for name in KERNELS if native.pocketvlm_accelerator_kernel(name.encode())]


def multiply(
    native: ctypes.CDLL, kernel: str, kind: GGMLQuantizationType, weights: npt.NDArray[np.uint8], rows: Floats
) -> Floats:
    product = native.pocketvlm_accelerator_multiply
    product.restype = ctypes.c_bool
    size, address = ctypes.c_int64, ctypes.c_void_p
    product.argtypes = [ctypes.c_char_p, ctypes.c_int, address, ctypes.c_size_t, address, address]
    product.argtypes += [size, size, size, ctypes.c_int]
    out = np.full((len(rows), len(weights)), np.nan, np.float32)
    begin = (kernel.encode(), int(kind), weights.ctypes.data, weights.shape[1], rows.ctypes.data, out.ctypes.data)
    assert product(*begin, len(rows), len(weights), rows.shape[1], 2)
    return out


def quantized(kind: GGMLQuantizationType, weights: Floats) -> npt.NDArray[np.uint8]:
    """The rows as ggml quantizes them."""
    block, size = GGML_QUANT_SIZES[kind]
    rows, width = weights.shape
    out = np.zeros((rows, width // block * size), np.uint8)
    number, address = ctypes.c_int64, ctypes.c_void_p
    quantize = function(
        "ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, address, address, number, number, number, address
    )
    assert quantize(int(kind), weights.ctypes.data, out.ctypes.data, 0, rows, width, None) == out.nbytes
    return out


def as_ggml_reads(rows: Floats, block: int) -> npt.NDArray[np.float64]:
    """What is left of an input after ggml has quantized it: Q8_0 in blocks of 32, Q8_K in blocks of 256."""
    blocks = rows.reshape(len(rows), -1, block)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    inverse = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), 0).astype(np.float32)
    scale = (largest / np.float32(127)).astype(np.float16) if block == 32 else 1 / np.where(inverse > 0, inverse, 1)
    return (np.rint(blocks * inverse) * scale.astype(np.float64)).reshape(rows.shape)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(16, 64, 512), (23, 75, 1280), (1, 33, 256)])
def test_products(native: ctypes.CDLL, kernels: list[str], kind: str, shape: tuple[int, int, int]) -> None:
    """With rows and columns that fill no group and no tile, zeros, and a depth of several parts."""
    rows, columns, depth = shape
    if kind not in SUPERBLOCKS:
        depth += 32  # an odd number of blocks
    rng = np.random.default_rng(0)
    kind_ = GGMLQuantizationType[kind]
    weights = quantized(kind_, rng.standard_normal((columns, depth), np.float32))
    inputs = rng.standard_normal((rows, depth), np.float32) * rng.gamma(1, 1, depth).astype(np.float32)
    inputs[rows // 2, :256] = 0
    inputs[rows - 1] = 0
    right = as_ggml_reads(inputs, 256 if kind in SUPERBLOCKS else 32) @ dequantize(weights, kind_).astype(np.float64).T
    for kernel in kernels:
        products = multiply(native, kernel, kind_, weights, inputs)
        assert np.abs(products - right).max() <= 2e-6 * max(np.abs(right).max(), 1e-6), kernel


@pytest.mark.parametrize(
    ("width", "heads", "key_heads", "tokens", "sequences"),
    [(128, 4, 2, 19, 2), (32, 6, 3, 1, 3), (64, 2, 2, 40, 1), (256, 2, 1, 17, 1)],
)
def test_delta_nets(
    native: ctypes.CDLL, kernels: list[str], width: int, heads: int, key_heads: int, tokens: int, sequences: int
) -> None:
    rng = np.random.default_rng(width)
    queries, keys, values = (
        rng.standard_normal((sequences, tokens, count, width), np.float32) for count in (key_heads, key_heads, heads)
    )
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    gates, betas = -rng.gamma(1, 1, (2, sequences, tokens, heads)).astype(np.float32)
    betas = 1 / (1 + np.exp(betas))
    states = rng.standard_normal((sequences, heads, width, width), np.float32)
    right = delta_net(queries, keys, values, gates, betas, states)
    compute = native.pocketvlm_accelerator_delta_net
    compute.restype = ctypes.c_bool
    address, size = ctypes.c_void_p, ctypes.c_int64
    compute.argtypes = [ctypes.c_char_p, *[address] * 7, *[size] * 5, ctypes.c_int]
    inputs = [array.ctypes.data for array in (queries, keys, values, gates, betas, states)]
    for kernel in kernels:
        out = np.full(values.size + states.size, np.nan, np.float32)
        sizes = (width, heads, key_heads, tokens, sequences)
        assert compute(kernel.encode(), *inputs, out.ctypes.data, *sizes, 2), kernel
        for found, expected in zip(np.split(out, [values.size]), right, strict=True):
            assert np.abs(found - expected.reshape(-1)).max() <= 1e-6 * np.abs(expected).max(), kernel


def delta_net(*arrays: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Outputs and last states of the gated delta rule (arXiv 2412.06464, equation 10), token by token."""
    queries, keys, values, gates, betas, states = (array.astype(np.float64) for array in arrays)
    sequences, tokens, heads, width = values.shape
    outputs = np.empty_like(values)
    for sequence, token, head in np.ndindex(sequences, tokens, heads):
        state, at = states[sequence, head], (sequence, token, head)
        key, query = (array[sequence, token, head % array.shape[2]] for array in (keys, queries))
        state *= np.exp(gates[at])
        state += np.outer(betas[at] * (values[at] - state @ key), key)
        outputs[at] = state @ query / np.sqrt(width)
    return outputs, states


def prefill(model: Model, tokens: list[int], accelerated: bool) -> tuple[Floats, Floats]:
    """Logits behind a prompt, and behind one token more."""
    with Context(model, n_ctx=256, n_batch=128, threads=2, accelerated=accelerated) as context:
        context.decode_tokens(tokens, 0)
        first = context.logits()
        context.decode_token(7, len(tokens))
        return first, context.logits()


def test_only_prompts_of_contexts_that_ask(native: ctypes.CDLL, iota_bundle: Path) -> None:
    """Products of 4 rows stay the CPU's, bit for bit, and so do all of contexts that are made without it."""
    del native
    with Model(next(iota_bundle.glob("model-*.gguf")), gpu_layers=0, mapped=True) as model:
        tokens = [n % model.n_vocab for n in range(3, 67)]
        plain = prefill(model, tokens, False)
        fast = prefill(model, tokens, True)
        again = prefill(model, tokens, False)
        short, same = prefill(model, tokens[:4], False), prefill(model, tokens[:4], True)
        few, others = prefill(model, tokens[:5], False), prefill(model, tokens[:5], True)
    assert not np.array_equal(plain[0], fast[0]) and not np.array_equal(few[0], others[0])  # it was used
    assert np.abs(plain[0] - fast[0]).max() < 0.02 * np.abs(plain[0]).max()
    assert all(map(np.array_equal, plain, again))
    assert all(map(np.array_equal, short, same))


def test_recurrent_layers(native: ctypes.CDLL, tmp_path: Path) -> None:
    """They are computed here from 5 tokens on, and what follows in the same sequence fits.

    The weights are float32, whose products are llama.cpp's. That 4 tokens have the same bits also shows that llama.cpp
    keeps the delta rule in one piece. Those of 16 tokens are llama.cpp's too, and their convolutions are not; whether
    these have the same bits depends on what the compiler fused in ggml's.
    """
    del native
    path = tmp_path / "model.gguf"
    write_hybrid(path)
    with Model(path, gpu_layers=0, mapped=True) as model:
        tokens = [n * 7 % 64 for n in range(120)]
        for count, other in ((4, False), (5, True), (16, None), (17, True), (120, True)):
            plain, fast = prefill(model, tokens[:count], False), prefill(model, tokens[:count], True)
            for one, two in zip(plain, fast, strict=True):
                assert other is None or np.array_equal(one, two) is not other, count
                assert np.abs(one - two).max() < 1e-5 * np.abs(one).max(), count


@pytest.mark.parametrize("file_type", ["Q4_0", "IQ4_NL"])
def test_reordered_weights(native: ctypes.CDLL, tmp_path: Path, file_type: str) -> None:
    """What llama.cpp has reordered gives the same bits as what it left in the file."""
    if not native.pocketvlm_accelerator_reads_reordered(int(GGMLQuantizationType[file_type])):
        pytest.skip("llama.cpp does not reorder it here, or in another way")
    path = tmp_path / "model.gguf"
    write_decoder(path, GGMLQuantizationType[file_type])
    with Model(path, gpu_layers=0) as reordered, Model(path, gpu_layers=0, mapped=True) as plain:
        first, second = every_row(reordered, True), every_row(plain, True)
        slow, without = every_row(plain, False), every_row(reordered, False)
    assert np.array_equal(first, second) and not np.array_equal(second, slow)
    if file_type == "IQ4_NL":  # of Q4_0 llama.cpp's own kernel for reordered weights gives the same bits
        assert not np.array_equal(first, without)


def every_row(model: Model, accelerated: bool) -> Floats:
    """Logits of all tokens of a prompt: the last layer would else be computed for one row alone."""
    with Context(model, n_ctx=256, n_batch=128, threads=2, accelerated=accelerated) as context:
        context.decode_tokens(list(range(40)), 0, every=True)
        return np.stack([context.logits(index) for index in range(40)])


def write_decoder(path: Path, kind: GGMLQuantizationType) -> None:
    """Write a model of one layer, without a vocabulary."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("no_vocab")
    shapes = {f"attn_{name}": (256, 256) for name in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate": (96, 256), "ffn_up": (96, 256), "ffn_down": (256, 96)}
    for name, shape in shapes.items():
        writer.add_tensor(
            f"blk.0.{name}.weight", quantized(kind, rng.standard_normal(shape, np.float32)), raw_dtype=kind
        )
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((64, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_hybrid(path: Path) -> None:
    """Write a model of a delta net and a layer of attention in float32, without a vocabulary."""
    width, inner, heads, key_heads, head, kernel = 64, 96, 4, 2, 32, 4
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "qwen35")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_rope_dimension_sections([3, 3, 2, 0])
    writer.add_full_attention_interval(2)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(heads * head)
    writer.add_ssm_state_size(head)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(key_heads)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("no_vocab")
    channels = (2 * key_heads + heads) * head
    net = {"attn_qkv": (channels, width), "attn_gate": (heads * head, width), "ssm_conv1d": (channels, kernel)}
    net |= {"ssm_beta": (heads, width), "ssm_alpha": (heads, width), "ssm_out": (width, heads * head)}
    attention = {"attn_q": (4 * head, width), "attn_k": (head, width), "attn_v": (head, width)}
    attention |= {"attn_output": (width, 2 * head)}
    forward = {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    for layer, shapes in enumerate((net, attention)):
        norms = {"attn_norm": width, "post_attention_norm": width}
        norms |= {"attn_q_norm": head, "attn_k_norm": head} if layer else {"ssm_norm": head}
        for name, size in norms.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(size, np.float32))
        for name, shape in {**shapes, **forward}.items():
            values = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))
            writer.add_tensor(f"blk.{layer}.{name}.weight", values)
    writer.add_tensor("blk.0.ssm_a", -rng.gamma(1, 1, heads).astype(np.float32))
    writer.add_tensor("blk.0.ssm_dt.bias", rng.standard_normal(heads, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((64, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def kernel_of(value: str) -> subprocess.CompletedProcess[str]:
    code = "from pocketvlm.native import library as n; print(n.accelerator().kernel, n.accelerator().why)"
    environment: dict[str, Any] = {**os.environ, "POCKETVLM_ACCELERATOR": value}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_variable(native: ctypes.CDLL) -> None:
    del native
    assert kernel_of("off").stdout.strip() == "None POCKETVLM_ACCELERATOR=off"
    unknown = kernel_of("abacus")
    assert "POCKETVLM_ACCELERATOR=abacus: no such accelerator here" in unknown.stderr


def test_a_library_of_another_version(tmp_path: Path) -> None:
    """After an update of the sources, the library of an editable install is the old one until it is installed again."""
    other = next(Path(np.__file__).parent.rglob("_multiarray_umath*.so"))  # a library without the functions
    Path(shutil.copy(other, tmp_path / LIBRARY)).chmod(0o644)
    found = load(ctypes.CDLL(None), tmp_path)
    assert found.kernel is None and "another version" in found.why and not found.computes([8])


def test_a_build_that_nobody_vouches_for(tmp_path: Path) -> None:
    """The library in this package was compiled for the llama.cpp of one version."""
    found = load(ctypes.CDLL(None), tmp_path, packaged=False)
    assert found.kernel is None and f"{tmp_path} has none" in found.why
