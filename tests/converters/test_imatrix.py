"""Importance matrices: collected as they should be, read in both formats, and of use."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pocketvlm.errors import QuantizationError
from pocketvlm.files.bundle import sha256_of
from pocketvlm.native import library
from pocketvlm.native.context import Context
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model
from pocketvlm.native.quantize import quantize_here
from pocketvlm.native.tensor import GGMLTensor
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import find_family
from pocketvlm_converters.quantization.calibrate import compute_matrix
from pocketvlm_converters.quantization.imatrix import read_matrix, usable, write_matrix
from pocketvlm_converters.quantization.quantize import NEED_IMPORTANCE_MATRIX, quantize_language
from pocketvlm_converters.weights import Weight

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


Quantized = Callable[[str, "np.ndarray | None"], np.ndarray]


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    """The errors [16, 512] of quantizing random weights to a type, with an importance of the columns."""
    quantize = library.llama()._lib.ggml_quantize_chunk
    quantize.restype, size, pointer = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    weights = np.random.default_rng(1).normal(0, 0.02, (16, 512)).astype(np.float32)

    def quantized(kind: str, importance: np.ndarray | None) -> np.ndarray:
        number = gguf.GGMLQuantizationType[kind]
        block, bytes_of_block = gguf.GGML_QUANT_SIZES[number]
        stored = np.zeros((16, 512 // block * bytes_of_block), np.uint8)
        columns = None if importance is None else np.ascontiguousarray(importance, np.float32)
        address = None if columns is None else columns.ctypes.data
        quantize(int(number), weights.ctypes.data, stored.ctypes.data, 0, 16, 512, address)
        return gguf.dequantize(stored, number) - weights

    return quantized


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save: Any) -> Path:
    """A checkpoint whose language model has widths that every type fits."""
    folder = tmp_path_factory.mktemp("wide")
    save(make_model(hidden_size=256, intermediate_size=512), folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def wide_bundle(wide: Path) -> Path:
    return convert(wide, wide.parent / "plain", quantize="f32", mmproj="f32", onnx="none", verify=False).path


@pytest.fixture(scope="module")
def automatic(wide_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The computed matrix of that model, as a file."""
    path = tmp_path_factory.mktemp("auto") / "wide.gguf"
    steps: list[tuple[str, int, int]] = []
    compute_matrix(wide_bundle / "model-F32.gguf", wide_bundle / "mmproj-f32.gguf", path, lambda *at: steps.append(at))
    assert {at[0] for at in steps} == {"importance matrix"} and steps[-1][1] == steps[-1][2] == 48
    assert [at[1] for at in steps] == sorted(at[1] for at in steps) and len(steps) > 40
    return path


def weights_of(checkpoint: Path) -> tuple[Weight, ...]:
    return find_family(Checkpoint(checkpoint)).language().weights


def test_sums_are_those_of_transformers(wide_bundle: Path, make_model: Any) -> None:
    """Hooks on the reference's linear layers see the same inputs, in batches and as one."""
    ids = [int(i) for i in np.random.default_rng(0).integers(20, 600, 100)]
    collector = Collector()
    with (
        Model(wide_bundle / "model-F32.gguf", gpu_layers=0) as model,
        Context(model, n_ctx=128, n_batch=64, threads=1, cache_type="f32", collector=collector) as context,
    ):
        for start in (0, 64):
            context.decode_tokens(ids[start : start + 64], start, every=True)
    collector.check()

    decoder = make_model(hidden_size=256, intermediate_size=512).model.text_model.double()
    seen: dict[str, np.ndarray] = {}

    def watch(name: str) -> Any:
        def hook(_module: Any, given: Any) -> None:
            seen[name] = (given[0].double() ** 2).sum((0, 1)).numpy()

        return hook

    for number, layer in enumerate(decoder.layers):
        for ours, theirs in NAMES.items():
            layer.get_submodule(theirs).register_forward_pre_hook(watch(f"blk.{number}.{ours}.weight"))
    with torch.no_grad():
        decoder(torch.tensor([ids]))
    assert collector.sums.keys() == seen.keys() and len(seen) == 14
    for name, wanted in seen.items():
        assert collector.counts[name].tolist() == [100]
        np.testing.assert_allclose(collector.sums[name][0], wanted, rtol=1e-4)


def test_experts_are_told_apart() -> None:
    """MUL_MAT_ID, on tensors made here: no model of a known family has one."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((5, 2, 8)).astype(np.float32)  # tokens, experts used, in
    chosen = rng.permuted(np.tile(np.arange(4, dtype=np.int32), (5, 1)), axis=1)  # ids are a view of wider rows
    weight, given, ids, node = GGMLTensor(name=b"blk.0.ffn_up_exps.weight"), GGMLTensor(), GGMLTensor(), GGMLTensor()
    weight.ne[:] = 8, 6, 4, 1
    for tensor, array, used in ((given, inputs[None], (8, 2, 5, 1)), (ids, chosen[None, None], (2, 5, 1, 1))):
        tensor.data, tensor.ne[:], tensor.nb[:] = array.ctypes.data, used, array.strides[::-1]
    for i, tensor in enumerate((weight, given, ids)):
        node.src[i] = ctypes.addressof(tensor)
    collector = Collector()
    collector.add(node, routed=True)
    wanted = np.zeros((4, 8))
    for token in range(5):
        for place in range(2):
            wanted[chosen[token, place]] += inputs[token, place].astype(np.float64) ** 2
    np.testing.assert_allclose(collector.sums["blk.0.ffn_up_exps.weight"], wanted)
    assert (
        collector.counts["blk.0.ffn_up_exps.weight"].tolist()
        == np.bincount(chosen[:, :2].ravel(), minlength=4).tolist()
    )


def test_what_is_written_is_what_llama_cpp_reads(automatic: Path, wide: Path) -> None:
    """By tools/imatrix and common/imatrix-loader.cpp: keys, names, float32, a row for each matrix."""
    reader = gguf.GGUFReader(automatic)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert keys.pop("imatrix.chunk_size") > 0
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["pocketvlm calibration samples"],
        "imatrix.chunk_count": 24,
    }
    tensors = {t.name: t for t in reader.tensors}
    matrices = [w for w in weights_of(wide) if w.is_matrix and w.name.startswith("blk.")]
    assert tensors.keys() == {w.name + end for w in matrices for end in (".in_sum2", ".counts")}
    matrix = read_matrix(automatic)
    matrix.check_fits(weights_of(wide))
    for weight in matrices:
        sums, counts = tensors[f"{weight.name}.in_sum2"], tensors[f"{weight.name}.counts"]
        assert sums.tensor_type == counts.tensor_type == gguf.GGMLQuantizationType.F32
        assert sums.shape.tolist() == [weight.width, 1] and counts.shape.tolist() == [1, 1]
        np.testing.assert_allclose(matrix.means[weight.name], sums.data[0] / counts.data[0, 0], rtol=1e-6)
    # The pictures are in it: 24 samples have less than a hundred tokens of text each.
    assert tensors["blk.0.attn_q.weight.counts"].data[0, 0] > 2400


def old_format(means: dict[str, np.ndarray], calls: int = 7, tail: bool = True) -> bytes:
    parts = [struct.pack("<i", len(means))]
    for name, values in means.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", calls, values.size)]
        parts.append((values * calls).astype("<f4").tobytes())
    return b"".join(parts) + (struct.pack("<ii", 12, 8) + b"wiki.txt" if tail else b"")


@pytest.mark.parametrize("tail", [True, False])
def test_the_older_format(automatic: Path, tmp_path: Path, tail: bool) -> None:
    means = dict(read_matrix(automatic).means)
    (tmp_path / "old.dat").write_bytes(old_format(means, tail=tail))
    found = read_matrix(tmp_path / "old.dat")
    assert found.sha256 == sha256_of(tmp_path / "old.dat") and found.means.keys() == means.keys()
    for name, values in means.items():
        np.testing.assert_allclose(found.means[name], values, rtol=1e-6)


def test_an_expert_that_saw_nothing(tmp_path: Path) -> None:
    write_matrix(
        tmp_path / "x.gguf",
        {"blk.0.ffn_up_exps.weight": np.array([[2.0, 4.0], [0.0, 0.0]])},
        {"blk.0.ffn_up_exps.weight": np.array([2, 0])},
        "test",
        1,
    )
    assert read_matrix(tmp_path / "x.gguf").means["blk.0.ffn_up_exps.weight"].tolist() == [1, 2, 1, 1]


COLUMNS = np.arange(512)
SOUND = (np.random.default_rng(0).random(512) + 0.1).astype(np.float32)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "Q4_0", "IQ4_XS", "IQ4_NL"])
@pytest.mark.parametrize(
    "importance",
    [
        np.zeros(512),
        np.where(COLUMNS < 256, 0, SOUND),  # a whole block
        np.where((COLUMNS >= 16) & (COLUMNS < 48), 0, SOUND),  # a part of one
        np.where(COLUMNS == 300, 1, 0),
        np.full(512, 1e-30),
        SOUND * 1e30,
        np.where(COLUMNS == 300, 1e6, SOUND),
    ],
    ids="zeros block part one tiny huge outlier".split(),
)
def test_no_column_is_lost(kind: str, importance: np.ndarray, quantized: Quantized) -> None:
    """Where a matrix says nothing, the errors are those without one; none are as large as the weights."""
    plain, weighted = quantized(kind, None), quantized(kind, usable(importance.astype(np.float32)))
    errors = [np.sqrt((error**2).reshape(-1, 32, 16).mean(axis=(0, 2))) / 0.02 for error in (plain, weighted)]
    assert (errors[1] < 0.7).all(), errors[1]
    known = importance.reshape(2, 256).any(axis=1).repeat(16)
    assert (errors[1] < 1.1 * errors[0].max())[~known].all(), errors[1] / errors[0]


def test_a_sound_matrix_stays_as_it_is(quantized: Quantized) -> None:
    """But for a power of two, which changes no bit of the result."""
    _, exponents = np.frexp(usable(SOUND) / SOUND)
    assert len({*exponents[:256]}) == 1 and len({*exponents[256:]}) == 1
    for kind in ("Q4_K", "Q6_K", "IQ4_XS"):
        np.testing.assert_array_equal(quantized(kind, usable(SOUND)), quantized(kind, SOUND))


def test_sizes_that_are_not_whole_blocks() -> None:
    for size in (1, 31, 96, 300):
        values = usable(np.zeros(size, np.float32))
        assert values.shape == (size,) and len({*values}) == 1 and values[0] > 0


def test_zeros_are_mentioned(tmp_path: Path) -> None:
    means = {"blk.0.ffn_up.weight": np.zeros(4), "blk.1.ffn_up.weight": np.ones(4), "blk.2.ffn_up.weight": np.zeros(4)}
    (tmp_path / "x.dat").write_bytes(old_format(means))
    assert read_matrix(tmp_path / "x.dat").notes() == [
        "the importance matrix has only zeros for blk.0.ffn_up.weight and 1 more: quantized as without a matrix"
    ]


@pytest.mark.parametrize("content", [b"", b"GGU", b"\x89PNG\r\n\x1a\n" * 99, b"hello, world\n" * 50, b"\0" * 4096])
def test_no_matrix_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(QuantizationError, match="x: is not an importance matrix"):
        read_matrix(tmp_path / "x")


def test_files_that_cannot_be_used(automatic: Path, wide_bundle: Path, tmp_path: Path) -> None:
    means = dict(read_matrix(automatic).means)
    whole, path = automatic.read_bytes(), tmp_path / "damaged"

    def refused(content: bytes, reason: str) -> None:
        path.write_bytes(content)
        with pytest.raises(QuantizationError, match=reason) as caught:
            read_matrix(path)
        assert caught.value.path == path

    for size in (4, 20, 100, 3000, len(whole) // 2, len(whole) - 64):
        refused(whole[:size], "is not a complete GGUF file")
    old = old_format(means, tail=False)
    for size in (len(old) // 2, len(old) - 1):
        refused(old[:size], r"truncated or damaged after \d+ of 14 tensors")
    first = next(iter(means))
    refused(old_format(means | {first: np.full(256, np.nan)}), f"impossible values for {first}")
    refused(old_format(means | {first: np.full(256, -1.0)}), f"impossible values for {first}")
    refused(whole.replace(b".counts", b".caunts", 1), "lacks blk.*counts in float32")
    text = lambda value: struct.pack("<Q", len(value)) + value  # noqa: E731
    for broken in (
        text(b"k") + struct.pack("<I", 99),
        text(b"k") + struct.pack("<IIQ", 9, 9, 5),
        text(b"k") + struct.pack("<IIQ", 9, 8, 2) + struct.pack("<Q", 2**63),
        text(b"general.alignment") + struct.pack("<II", 4, 0),
        text(b"general.alignment") + struct.pack("<I", 8) + text(b"32"),
        struct.pack("<Q", 2**64 - 1),
    ):
        refused(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + broken + bytes(64), "is not a complete GGUF file")
    with pytest.raises(QuantizationError, match="is a GGUF file, but not an importance matrix"):
        read_matrix(wide_bundle / "model-F32.gguf")
    with pytest.raises(QuantizationError, match="cannot be read: No such file"):
        read_matrix(tmp_path / "nowhere")


def test_the_matrix_of_another_model(automatic: Path, pristine: Path, wide: Path, tmp_path: Path) -> None:
    means = dict(read_matrix(automatic).means)

    def refused(changed: dict[str, np.ndarray], reason: str) -> None:
        (tmp_path / "x.dat").write_bytes(old_format(changed))
        with pytest.raises(QuantizationError, match=f"x.dat: is the importance matrix of another model: {reason}"):
            convert(wide, tmp_path / "bundle", imatrix=tmp_path / "x.dat")
        assert [path.name for path in tmp_path.iterdir()] == ["x.dat"]

    refused(means | {"blk.2.attn_q.weight": np.ones(256)}, "it has blk.2.attn_q.weight")
    refused(means | {"blk.1.ffn_down.weight": np.ones(256)}, "its blk.1.ffn_down.weight has 256 columns, .* 512")
    refused({n: v for n, v in means.items() if "blk.1" not in n}, "it lacks blk.1")
    with pytest.raises(QuantizationError, match="of another model"):
        convert(pristine, tmp_path / "bundle", imatrix=automatic)


@pytest.mark.slow
def test_every_type_that_needs_a_matrix_works_with_one(tmp_path: Path, make_model: Any, save: Any) -> None:
    """In this process: libllama computes its grids once for each, which takes longer than the work."""
    save(make_model(hidden_size=256, intermediate_size=256, num_hidden_layers=1), tmp_path / "checkpoint")
    source = (
        convert(tmp_path / "checkpoint", tmp_path / "b", quantize="f32", onnx="none", verify=False).path
        / "model-F32.gguf"
    )
    rng = np.random.default_rng(0)
    matrix = {
        w.name: rng.random(256, np.float32) for w in weights_of(tmp_path / "checkpoint") if w.name.startswith("blk.")
    }
    sizes = {}
    for name in sorted(NEED_IMPORTANCE_MATRIX):
        quantize_here(source, tmp_path / name, name, 2, matrix)
        sizes[name] = (tmp_path / name).stat().st_size
        with Model(tmp_path / name, gpu_layers=0) as model, Context(model, n_ctx=64, n_batch=8, threads=1) as context:
            context.decode_tokens([5, 6, 7], 0)
            assert np.isfinite(context.logits()).all()
    assert sizes["IQ1_S"] < sizes["IQ2_XXS"] < sizes["IQ2_M"] < sizes["IQ3_XXS"]


def test_it_is_used(wide_bundle: Path, automatic: Path, tmp_path: Path) -> None:
    """The error of Q4_K, weighted with the matrix, shrinks in every matrix of that type."""
    matrix, source = read_matrix(automatic), wide_bundle / "model-F32.gguf"
    quantize_language(source, tmp_path / "plain", "Q4_K_S")
    quantize_language(source, tmp_path / "weighted", "Q4_K_S", matrix=matrix)
    exact = {t.name: t.data for t in gguf.GGUFReader(source).tensors}
    plain, weighted = (gguf.GGUFReader(tmp_path / name).tensors for name in ("plain", "weighted"))
    compared = 0
    for one, other in zip(plain, weighted, strict=True):
        if one.tensor_type != gguf.GGMLQuantizationType.Q4_K or one.name not in matrix.means:
            continue
        errors = [
            ((gguf.dequantize(t.data, t.tensor_type) - exact[t.name]) ** 2 * matrix.means[t.name]).sum()
            for t in (one, other)
        ]
        assert errors[1] < 0.99 * errors[0], one.name
        compared += 1
    assert compared > 8


def test_a_tensor_without_importances_keeps_its_weights(wide_bundle: Path, automatic: Path, tmp_path: Path) -> None:
    matrix, source, name = read_matrix(automatic), wide_bundle / "model-F32.gguf", "blk.0.ffn_up.weight"
    unknown = replace(matrix, means=matrix.means | {name: np.zeros_like(matrix.means[name])})
    [note] = quantize_language(source, tmp_path / "unknown.gguf", "Q4_K_S", matrix=unknown)
    assert note == f"the importance matrix has only zeros for {name}: quantized as without a matrix"
    exact, quantized = (
        next(gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors if t.name == name)
        for path in (source, tmp_path / "unknown.gguf")
    )
    # Lost weights have an error of 1, sound ones of Q4_K of about 0.07.
    assert np.sqrt(((quantized - exact) ** 2).mean() / (exact**2).mean()) < 0.15


@pytest.mark.slow
def test_convert(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="IQ3_XXS needs an importance matrix"):
        convert(wide, tmp_path / "bundle", quantize="IQ3_XXS")
    with pytest.raises(QuantizationError, match="F16 is not quantized"):
        convert(wide, tmp_path / "bundle", quantize="F16", imatrix="auto")
    steps: list[str] = []
    bundle = convert(
        wide,
        tmp_path / "bundle",
        quantize="iq3_xxs",
        onnx="none",
        imatrix="auto",
        verify=False,
        progress=lambda *at: steps.append(at[0]),
    )
    assert list(dict.fromkeys(steps))[:4] == ["mmproj q8_0", "language model", "importance matrix", "quantize IQ3_XXS"]
    found = bundle.manifest.imatrix
    assert found is not None and found.name == "auto" and len(found.sha256) == 64
    assert {path.name for path in bundle.path.iterdir()} == {"manifest.json", "mmproj-q8_0.gguf", "model-IQ3_XXS.gguf"}


def test_convert_with_a_file(wide: Path, automatic: Path, tmp_path: Path) -> None:
    bundle = convert(wide, tmp_path / "bundle", onnx="none", imatrix=automatic, verify=False)
    found = bundle.manifest.imatrix
    assert found is not None and (found.name, found.sha256) == ("wide.gguf", sha256_of(automatic))
    # Entries that are about no matrix play no part, whatever they are called.
    odd = tmp_path / os.fsdecode(b"x\xff.dat")
    odd.write_bytes(old_format(read_matrix(automatic).means | {"file": np.ones(2)}))
    more = convert(wide, tmp_path / "more", onnx="none", imatrix=odd, verify=False)
    assert more.manifest.imatrix is not None and more.manifest.imatrix.name == "x\ufffd.dat"


def test_interrupted(wide: Path, tmp_path: Path) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step == "importance matrix" and done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(wide, tmp_path / "bundle", imatrix="auto", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_reason_is_told(wide_bundle: Path, tmp_path: Path) -> None:
    model = wide_bundle / "model-F32.gguf"
    with pytest.raises(QuantizationError, match=r"matrix cannot be computed: .*is a language model"):
        compute_matrix(model, model, tmp_path / "x.gguf")
