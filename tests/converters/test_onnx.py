"""The ONNX vision encoder computes what transformers computes, with operators that onnxruntime has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

import pocketvlm_converters.onnx.graph
from pocketvlm.errors import CheckpointError, QuantizationError
from pocketvlm.files.bundle import Bundle
from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.onnx_header import DOMAINS, read_onnx
from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.convert import convert
from pocketvlm_converters.onnx.weights import four_bits, signed_bytes

IOTA = Path(__file__).parents[2] / "models" / "iota" / "checkpoint"
LEAST = {"fp32": 0.9999, "fp16": 0.9999, "int8": 0.999, "int4": 0.95}
TRAINED = {"fp32": 0.9999, "int8": 0.9994}
Array = npt.NDArray[Any]


def encoded(path: Path, tiles: Array) -> Array:
    """All tiles in one run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime does
    (found,) = onnxruntime.InferenceSession(path, options).run(None, {"pixels": tiles})
    return np.asarray(found)


def wanted(model: Any, tiles: Array, mean: float = 0.5, std: float = 0.5) -> Array:
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        seen = model.get_image_features(pixels[:, None]).pooler_output
    return torch.stack(list(seen)).reshape(len(tiles), -1, seen[0].shape[-1]).numpy()


def worst_cosine(found: Array, seen: Array) -> float:
    assert found.shape == seen.shape
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(seen, axis=-1)
    return float(((found * seen).sum(-1) / lengths).min())


def noise(edge: int, count: int = 3) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, edge, edge, 3), np.uint8)


def made(checkpoint: Path, folder: Path, kind: str) -> Path:
    bundle = convert(checkpoint, folder / kind, quantize="f16", mmproj="none", onnx=kind, verify=False)
    path = bundle.file("vision")
    assert path is not None and path.name == f"vision-{kind}.onnx"
    return path


@pytest.mark.oracle
@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_embeddings(family: str, kind: str, make_model: Any, save: Any, tmp_path: Path) -> None:
    model = make_model(family)
    save(model, tmp_path / "checkpoint")
    tiles = noise(model.config.vision_config.image_size)
    path, seen = made(tmp_path / "checkpoint", tmp_path, kind), wanted(model, tiles)
    found = np.concatenate([encoded(path, tile[None]) for tile in tiles])
    assert worst_cosine(found, seen) >= LEAST[kind]
    if kind == "fp32":
        assert np.abs(found - seen).max() < 1e-3 * np.abs(seen).max()
        assert np.abs(encoded(path, tiles) - found).max() < 1e-3 * np.abs(seen).max(), "any number of tiles"


@pytest.mark.oracle
@pytest.mark.skipif(not IOTA.is_dir(), reason="iota is not trained yet")
@pytest.mark.parametrize("kind", TRAINED)
def test_embeddings_of_a_trained_model(kind: str, sample_png: Path, tmp_path: Path) -> None:
    """Noise alone would not show what the outliers of trained activations do to int8."""
    from PIL import Image

    model = AutoModelForImageTextToText.from_pretrained(IOTA, dtype=torch.float32).eval()
    picture = np.asarray(Image.open(sample_png).convert("RGB").resize((192, 192)))
    crops = [picture[y : y + 96, x : x + 96] for y in (0, 48, 96) for x in (0, 48, 96)]
    tiles = np.stack([*crops, *noise(96), np.full((96, 96, 3), 255, np.uint8), np.zeros((96, 96, 3), np.uint8)])
    path = made(IOTA, tmp_path, kind)
    found = np.concatenate([encoded(path, tile[None]) for tile in tiles])
    assert worst_cosine(found, wanted(model, tiles)) >= TRAINED[kind]


@pytest.mark.oracle
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "silu", "quick_gelu"])
def test_activations_and_normalization(activation: str, make_model: Any, save: Any, edit: Any, tmp_path: Path) -> None:
    model = make_model(vision={"hidden_act": activation})
    save(model, tmp_path / "checkpoint")
    changes = {"image_processor.image_mean": [0.4] * 3, "image_processor.image_std": [0.3] * 3}
    edit(tmp_path / "checkpoint" / "processor_config.json", changes)
    tiles = noise(model.config.vision_config.image_size)
    found = encoded(made(tmp_path / "checkpoint", tmp_path, "fp32"), tiles)
    assert worst_cosine(found, wanted(model, tiles, 0.4, 0.3)) >= 0.9999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints(dtype: torch.dtype, make_model: Any, save: Any, tmp_path: Path) -> None:
    model = make_model()
    save(model.to(dtype), tmp_path / "checkpoint")
    tiles = noise(model.config.vision_config.image_size)
    found = encoded(made(tmp_path / "checkpoint", tmp_path, "fp32"), tiles)
    assert worst_cosine(found, wanted(model.to(torch.float32), tiles)) >= 0.9999


@pytest.mark.parametrize("kind", LEAST)
def test_only_known_operators(kind: str, pristine: Path, tmp_path: Path) -> None:
    path = made(pristine, tmp_path, kind)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}
    assert {node.domain for node in model.graph.node} <= DOMAINS
    onnxruntime.InferenceSession(path)


def test_int8_is_in_int8(pristine: Path, tmp_path: Path) -> None:
    """In each layer, all but a sixteenth of the second matrix's columns, and the other matrices whole."""
    path = made(pristine, tmp_path, "int8")
    sizes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    layers = [name for name in sizes if name.endswith("fc2.others.weight")]
    config = json.loads((pristine / "config.json").read_text())["vision_config"]
    assert len(layers) == config["num_hidden_layers"]
    inner = config["intermediate_size"]
    for name in layers:
        assert types[name] == onnx.TensorProto.INT8 and sizes[name][0] == inner - max(1, inner // 16)
        loud = name.replace("others", "loud")
        assert types[loud] == onnx.TensorProto.FLOAT16 and sizes[loud][0] == inner - sizes[name][0]
    floats = {name for name in sizes if types[name] != onnx.TensorProto.INT8 and name.endswith("proj.weight")}
    assert not {name for name in floats if "layers" in name}
    assert "errors cancelled" in read_onnx(path).metadata["pocketvlm.rounding"]


def test_metadata_is_that_of_the_mmproj(pristine: Path, tmp_path: Path) -> None:
    """The runtime's families read either; a graph and the language model are enough."""
    bundle = convert(pristine, tmp_path / "bundle", quantize="f16", mmproj="none", verify=False)
    data = read_onnx(bundle.path / "vision-int8.onnx").metadata
    assert data["pocketvlm.family"] == bundle.manifest.family
    model = read_header(bundle.file("model")).metadata
    assert data["pocketvlm.weights_sha256"] == model["pocketvlm.weights_sha256"]
    assert data["pocketvlm.type"] == "int8"
    assert (data["clip.vision.image_size"], data["clip.vision.projector.scale_factor"]) == (32, 2)
    assert [entry.role for entry in bundle.manifest.files] == ["model", "vision"]
    assert "onnx" in bundle.manifest.versions


def test_large_weights_lie_beside(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline = encoded(made(pristine, tmp_path, "int8"), noise(32))
    monkeypatch.setattr(pocketvlm_converters.onnx.graph, "_INLINE_LIMIT", 1 << 10)
    bundle = convert(pristine, tmp_path / "bundle", quantize="f16", mmproj="none", verify=False)
    assert [entry.name for entry in bundle.manifest.files][1:] == ["vision-int8.onnx", "vision-int8.onnx.data"]
    assert [entry.role for entry in bundle.manifest.files][1:] == ["vision", "data"]
    bundle.verify()
    path = bundle.path / "vision-int8.onnx"
    assert read_onnx(path).data_files == (bundle.path / "vision-int8.onnx.data",)
    assert path.stat().st_size < (bundle.path / "vision-int8.onnx.data").stat().st_size
    assert np.array_equal(encoded(path, noise(32)), inline)


def test_twice_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    one, two = (made(pristine, tmp_path / name, "int8") for name in ("a", "b") if not (tmp_path / name).mkdir())
    assert one.read_bytes() == two.read_bytes()


def test_types_that_are_not_there(pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"unknown ONNX type 'int3'.*int8"):
        convert(pristine, tmp_path / "bundle", onnx="int3")
    with pytest.raises(QuantizationError, match="cannot both be none"):
        convert(pristine, tmp_path / "bundle", mmproj="none", onnx="none")
    bundle = convert(pristine, tmp_path / "bundle", quantize="f16", onnx="NONE", verify=False)
    assert [entry.role for entry in bundle.manifest.files] == ["model", "mmproj"]
    assert list(tmp_path.iterdir()) == [bundle.path]


@pytest.mark.parametrize(("value", "kind", "words"), [(float("nan"), "int8", "NaN"), (1e5, "fp16", "float16")])
def test_bad_weights(value: float, kind: str, words: str, make_model: Any, save: Any, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.vision_model.encoder.layers[1].mlp.fc1.weight[3, 5] = value
    save(model, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=rf"layers.1.mlp.fc1.weight.*{words}"):
        convert(tmp_path / "checkpoint", tmp_path / "bundle", quantize="f16", mmproj="none", onnx=kind, verify=False)
    assert not (tmp_path / "bundle").exists()


def rows(shape: tuple[int, int]) -> Tensor:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    values[1] = 0
    return Tensor("rows", values)


def test_int8_rows() -> None:
    tensor = rows((6, 40))
    found = signed_bytes(tensor)
    error = np.abs(found.values * found.scales[:, None] - tensor.data)
    assert (error.max(1) <= np.abs(tensor.data).max(1) / 127 / 2 + 1e-6).all()
    assert np.abs(found.values).max() == 127 and not found.values[1].any()


def test_int4_blocks() -> None:
    tensor = rows((6, 40))
    found = four_bits(tensor, 32)
    assert found.values.shape == (6, 2, 16) and found.scales.shape == (12,)
    nibbles = np.stack([found.values & 15, found.values >> 4], -1).reshape(6, 2, 32).astype(np.float32) - 8
    decoded = (nibbles * found.scales.reshape(6, 2, 1)).reshape(6, 64)
    assert np.abs(decoded[:, :40] - tensor.data).max() <= np.abs(tensor.data).max() / 8
    assert not decoded[1].any()


def test_command(pristine: Path, tmp_path: Path) -> None:
    import typer

    from pocketvlm_converters.cli.convert import convert as command

    app = typer.Typer()
    app.command()(command)
    output = tmp_path / "bundle"
    result = CliRunner().invoke(app, [str(pristine), "-o", str(output), "--onnx", "fp16", "--mmproj", "none"])
    assert result.exit_code == 0, result.output
    assert "vision-fp16.onnx" in result.stdout
    assert json.loads((output / "manifest.json").read_text())["files"][1]["quantization"] == "fp16"
    assert Bundle(output).file("mmproj") is None
