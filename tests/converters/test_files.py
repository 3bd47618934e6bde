"""GGUF files and quantization: what is written, in which type, and what is said where it is not as asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pocketvlm.errors import OutputError, QuantizationError
from pocketvlm.files.gguf_header import read_header
from pocketvlm.native.quantize import file_types, quantize_gguf, quantize_here
from pocketvlm_converters.checkpoint.folder import Checkpoint, Tensor
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import find_family
from pocketvlm_converters.gguf import read_tensors, write_language, write_projector
from pocketvlm_converters.quantization.quantize import (
    NEED_IMPORTANCE_MATRIX,
    language_type,
    language_types,
    projector_type,
    quantize_language,
)
from pocketvlm_converters.samples.forward import Loaded
from pocketvlm_converters.samples.sets import proof_samples
from pocketvlm_converters.tokenizer import read_vocabulary
from pocketvlm_converters.weights import Part, Weight


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save: Any) -> Path:
    """A language model whose widths are multiples of 256, as GGUF."""
    folder = tmp_path_factory.mktemp("wide")
    save(make_model(hidden_size=256, intermediate_size=256), folder / "checkpoint")
    checkpoint = Checkpoint(folder / "checkpoint")
    part = find_family(checkpoint).language()
    words = read_vocabulary(checkpoint, 704).metadata()
    write_language(dataclasses.replace(part, metadata={**part.metadata, **words}), folder / "wide.gguf", None)
    return folder / "wide.gguf"


@pytest.fixture
def narrow(pristine: Path, tmp_path: Path) -> Path:
    bundle = convert(pristine, tmp_path / "narrow", quantize="f32", verify=False)
    return bundle.path / "model-F32.gguf"


def test_every_type_that_is_offered_works(wide: Path, tmp_path: Path) -> None:
    plain = {tensor.name for tensor in read_tensors(wide)}
    for name in language_types():
        quantize_here(wide, tmp_path / name, name, 2)
        assert {tensor.name for tensor in read_tensors(tmp_path / name)} == plain, name


def test_every_type_that_is_refused_for_its_matrix_needs_one(wide: Path, tmp_path: Path) -> None:
    assert set(file_types()) >= NEED_IMPORTANCE_MATRIX
    for name in sorted(NEED_IMPORTANCE_MATRIX):
        with pytest.raises(QuantizationError, match=f"{name} needs an importance matrix"):
            language_type(name.lower())
        with pytest.raises(QuantizationError):
            quantize_here(wide, tmp_path / "out", name, 2)


def test_nothing_is_forgotten() -> None:
    left = set(file_types()) - set(language_types()) - NEED_IMPORTANCE_MATRIX
    assert left == {"NVFP4"}, "libllama has a type that is neither offered nor refused by name"


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("Q9_Z", "use Q4_K_M, "),
        ("", "use Q4_K_M, "),
        ("q4", r"did you mean Q4_0, Q4_1, Q4_K_M or Q4_K_S\?$"),
        ("Q4KM", r"did you mean Q4_K_M"),
        ("IQ2", r"did you mean IQ2_M, IQ2_S, IQ2_XS or IQ2_XXS\?$"),
        ("GUESSED", "use Q4_K_M, "),
        ("NVFP4", "use Q4_K_M, "),
    ],
)
def test_unknown_quantization(name: str, suggested: str, tmp_path: Path, pristine: Path) -> None:
    for imatrix in (None, "auto"):
        with pytest.raises(QuantizationError, match=suggested):
            convert(pristine, tmp_path / "bundle", quantize=name, imatrix=imatrix)
    with pytest.raises(QuantizationError, match="q8_0"):
        projector_type(name)
    assert language_type("q4_k_m") == "Q4_K_M" and projector_type("Q8_0") == "q8_0"


def test_the_reason_of_libllama_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, or is it?" * 9)
    with pytest.raises(QuantizationError, match=r"load|magic|version"):
        quantize_gguf(tmp_path / "model.gguf", tmp_path / "out.gguf", "Q8_0")


def test_widths_that_fit(wide: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    notes = quantize_language(wide, tmp_path / "out.gguf", "Q4_K_M", lambda *step: seen.append(step))
    assert notes == []
    assert "Q4_K" in {tensor.kind for tensor in read_tensors(tmp_path / "out.gguf")}
    done = [done for _, done, _ in seen]
    assert done == sorted(done) and seen[-1] == ("quantize Q4_K_M", len(done), len(done))


def test_widths_that_do_not_fit_are_told(narrow: Path, tmp_path: Path) -> None:
    (note,) = quantize_language(narrow, tmp_path / "out.gguf", "Q4_K_M")
    assert "15 of 15 matrices have a larger type than Q4_K_M" in note and "64, 96" in note and "Q5_0" in note
    assert quantize_language(narrow, tmp_path / "out.gguf", "Q8_0") == []


def test_a_full_disk_under_libllama(wide: Path, tmp_path: Path, file_limit: Any) -> None:
    with file_limit() as limit, pytest.raises(QuantizationError, match="iostream error"):
        limit(300_000)
        quantize_language(wide, tmp_path / "out.gguf", "Q8_0")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0"])
def test_projector_types(pristine: Path, tmp_path: Path, kind: Any) -> None:
    bundle = convert(pristine, tmp_path / "bundle", quantize="f16", mmproj=kind, verify=False)
    assert bundle.manifest.notes == ()
    kinds = {tensor.name: tensor.kind for tensor in read_tensors(bundle.path / f"mmproj-{kind}.gguf")}
    floats = {name for name, found in kinds.items() if found == "F32"}
    assert {"v.patch_embd.weight", "v.position_embd.weight", "v.blk.1.ln2.weight", "v.blk.0.ffn_up.bias"} <= floats
    assert kinds["v.blk.0.attn_q.weight"] == kind.upper()
    assert kinds["mm.model.fc.weight"] == (kind.upper() if kind in ("f32", "bf16") else "F16")


def test_mixed_projector(tmp_path: Path, make_model: Any, save: Any) -> None:
    save(make_model(vision={"num_hidden_layers": 4}), tmp_path / "checkpoint")
    bundle = convert(
        tmp_path / "checkpoint", tmp_path / "bundle", quantize="f16", mmproj="mixed", onnx="none", verify=False
    )
    kinds = {tensor.name: tensor.kind for tensor in read_tensors(bundle.path / "mmproj-mixed.gguf")}
    assert kinds["mm.model.fc.weight"] == "F16"
    for layer, others in enumerate(["Q8_0", "Q5_1", "Q5_1", "Q8_0"]):
        assert kinds[f"v.blk.{layer}.ffn_down.weight"] == "Q8_0"
        assert {kinds[f"v.blk.{layer}.{name}.weight"] for name in ("attn_v", "attn_out", "ffn_up")} == {others}
        assert kinds[f"v.blk.{layer}.ffn_up.bias"] == kinds[f"v.blk.{layer}.ln1.weight"] == "F32"


# Measured on the trained iota, whose narrow rows suffer more than those of a large encoder.
FAITHFUL = {"f16": 0.9999, "bf16": 0.9999, "q8_0": 0.9995, "mixed": 0.999, "q5_1": 0.995, "q4_0": 0.97}


@pytest.mark.parametrize("kind", FAITHFUL)
def test_projector_types_in_libmtmd(iota_onnx: Path, tmp_path: Path, kind: Any) -> None:
    """Mean cosine of all embeddings to float32's."""
    checkpoint = Checkpoint(Path(__file__).parents[2] / "models" / "iota" / "checkpoint")
    part = find_family(checkpoint).projector()
    write_projector(part, tmp_path / "mmproj.gguf", kind)
    found = []
    for encoder in (iota_onnx / "mmproj-f32.gguf", tmp_path / "mmproj.gguf"):
        with Loaded(iota_onnx / "model-F32.gguf", encoder) as loaded:
            slots = [slot for sample in proof_samples(4) for slot in loaded.exchange(sample).spans]
            found.append(np.concatenate([slot.rows for slot in slots]))
    exact, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in found)
    cosine = (exact * other).sum(1).mean()
    assert FAITHFUL[kind] < cosine < 1 - 1e-7, cosine


def test_projector_rows_that_do_not_fit(tmp_path: Path, make_model: Any, save: Any) -> None:
    save(make_model(vision={"intermediate_size": 80}), tmp_path / "checkpoint")
    bundle = convert(tmp_path / "checkpoint", tmp_path / "bundle", quantize="f16", verify=False)
    assert bundle.manifest.notes == (
        "2 mmproj tensors are f16, not q8_0: their row lengths (80) are not multiples of 32",
    )
    kinds = {tensor.name: tensor.kind for tensor in read_tensors(bundle.path / "mmproj-q8_0.gguf")}
    assert kinds["v.blk.1.ffn_down.weight"] == "F16" and kinds["v.blk.1.ffn_up.weight"] == "Q8_0"


def test_projector_metadata(pristine: Path, tmp_path: Path) -> None:
    bundle = convert(pristine, tmp_path / "bundle", quantize="f16", verify=False)
    fields = gguf.GGUFReader(bundle.file("mmproj")).fields
    found = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    eps = found.pop("clip.vision.attention.layer_norm_epsilon")
    assert eps == pytest.approx(1e-6)
    assert found == {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": "bundle",
        "general.size_label": "82K",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "pocketvlm.family": "smolvlm",
        "pocketvlm.weights_sha256": read_header(bundle.file("model")).metadata["pocketvlm.weights_sha256"],
        "clip.projector_type": "idefics3",
        "clip.has_vision_encoder": True,
        "clip.use_gelu": True,
        "clip.vision.image_size": 32,
        "clip.vision.patch_size": 4,
        "clip.vision.embedding_length": 64,
        "clip.vision.feed_forward_length": 96,
        "clip.vision.block_count": 2,
        "clip.vision.attention.head_count": 4,
        "clip.vision.projection_dim": 64,
        "clip.vision.projector.scale_factor": 2,
        "clip.vision.preproc_image_size": 96,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }


def test_written_values_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    single = rng.standard_normal((70, 64)).astype(np.float32)
    brain = (rng.standard_normal((3, 32)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    order = rng.permutation(70)
    weights = (
        Weight("ordered.weight", Tensor("a", single), order),
        Weight("brain.weight", Tensor("b", brain)),
        Weight("norm.weight", Tensor("c", brain[0]), exact=True),
    )
    part = Part("clip", {"a.list": [1, 2], "a.flag": True}, weights)
    exact = (brain.astype(np.uint32) << 16).view(np.float32)
    for kind, limit in {"f32": 0, "f16": 1e-3, "bf16": 1e-2, "q8_0": 3e-2}.items():
        write_projector(part, tmp_path / "x.gguf", kind)  # type: ignore[arg-type]
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
        values = {name: gguf.dequantize(t.data, t.tensor_type) for name, t in found.items()}
        assert np.abs(values["ordered.weight"] - single[order]).max() <= limit
        assert np.abs(values["brain.weight"] - exact).max() <= limit
        assert (values["norm.weight"] == exact[0]).all()


def test_header_reader_agrees_with_the_gguf_package(wide: Path) -> None:
    reader = gguf.GGUFReader(wide)
    expected = [(t.name, tuple(map(int, t.shape[::-1])), t.tensor_type.name) for t in reader.tensors]
    assert [(t.name, t.shape, t.kind) for t in read_tensors(wide)] == expected


@pytest.mark.parametrize("lost", [1, 1000, 100_000])
def test_an_incomplete_file_is_seen(wide: Path, tmp_path: Path, lost: int) -> None:
    (tmp_path / "short.gguf").write_bytes(wide.read_bytes()[:-lost])
    with pytest.raises(OutputError, match="is not a complete GGUF file"):
        read_tensors(tmp_path / "short.gguf")
