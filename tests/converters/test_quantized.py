"""Quantized checkpoints are read as the programs that wrote them read them, or refused by name.

`golden/quantized.safetensors` has a small weight in every format; `golden/quantize.py` made it with these programs.
"""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Checkpoint

GOLDEN = Path(__file__).parent.parent / "golden" / "quantized.safetensors"
with safe_open(GOLDEN, "pt") as _file:
    CASES = {name: json.loads(config) for name, config in sorted(_file.metadata().items())}


def tensors_of(case: str) -> dict[str, torch.Tensor]:
    with safe_open(GOLDEN, "pt") as file:
        return {key.removeprefix(f"{case}/"): file.get_tensor(key) for key in file.keys() if key.startswith(f"{case}/")}  # noqa: SIM118


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "any", **config}))
    save_file({"norm.weight": torch.ones(4), **tensors}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_each_format_is_read_to_the_bit(case: str, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    expected = tensors.pop("expected")
    checkpoint = Checkpoint(write(tmp_path / "checkpoint", CASES[case], tensors))
    assert checkpoint.tensors.keys() == {"norm.weight", "layer.weight"}
    weight = checkpoint.tensors["layer.weight"]
    assert weight.dtype == {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[expected.dtype]
    bits = expected.view(torch.uint16).numpy() if expected.dtype == torch.bfloat16 else expected.numpy()
    np.testing.assert_array_equal(np.concatenate(list(weight.blocks())), bits)
    (note,) = checkpoint.notes
    assert note.startswith("1 weights were dequantized")


# Tensors without which a weight is whole: groups are in order, and there is one format of rows.
OPTIONAL = {
    ("gptq-4", "g_idx"),
    ("gptq-4-second", "g_idx"),
    ("gptq-2", "g_idx"),
    ("bnb-int8", "weight_format"),
    ("ct-packed-ordered", "weight_g_idx"),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_that_are_missing_or_too_long(case: str, tmp_path: Path) -> None:
    """They are refused by name when the checkpoint is opened, before a weight is computed."""
    tensors = tensors_of(case)
    expected = tensors.pop("expected")
    for name in tensors:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        stored = tensors[name].reshape(tensors[name].shape or (1,))
        longer = {**tensors, name: torch.cat([stored.view(torch.uint8)] * 2).view(stored.dtype)}
        for changed in (rest, longer):
            folder = write(tmp_path / "checkpoint", CASES[case], changed)
            try:
                shape = Checkpoint(folder).tensors["layer.weight"].shape
            except CheckpointError as error:
                assert "layer." in str(error)
            else:  # a model of another shape, which its family refuses, or a tensor that makes no difference
                assert shape != expected.shape or (case, name.removeprefix("layer.")) in OPTIONAL


def test_what_the_quantization_left_out_stays(tmp_path: Path) -> None:
    tensors = tensors_of("fp8-block")
    del tensors["expected"]
    others = {
        "lm_head.weight": torch.ones(2, 3, dtype=torch.float16),
        "layer.bias": torch.ones(32),
        "k.k_scale": torch.ones(1),
    }
    checkpoint = Checkpoint(write(tmp_path / "checkpoint", CASES["fp8-block"], {**tensors, **others}))
    assert checkpoint.tensors.keys() == {"norm.weight", "layer.weight", "lm_head.weight", "layer.bias"}
    assert checkpoint.tensors["lm_head.weight"].dtype == "F16"


def config(case: str, **changes: Any) -> dict[str, Any]:
    return {**CASES[case], "quantization_config": {**CASES[case]["quantization_config"], **changes}}


@pytest.mark.parametrize(
    ("case", "changed", "words"),
    [
        ("awq", {}, "tensor layer.qweight is I32; only F32, F16 and BF16 are supported"),
        ("awq", config("awq", quant_method="hqq"), "is quantized by 'hqq', which cannot be read (known: awq, bits"),
        ("awq", config("awq", version="gemv"), "version is 'gemv'; only gemm"),
        ("awq", config("awq", bits=8), "bits is 8; only 4"),
        ("gptq-4", config("gptq-4", checkpoint_format="marlin"), "checkpoint_format is 'marlin'"),
        ("ct-packed", config("ct-packed", format="nvfp4-pack-quantized"), "format is 'nvfp4-pack-quantized'"),
        ("ct-packed", config("ct-packed", config_groups={}), "tensor layer.weight_packed is I32 (32, 4)"),
        (
            "ct-float-rows",
            config("ct-float-rows", quant_method="modelopt", quant_algo="NVFP4"),
            "quant_algo is 'NVFP4'",
        ),
        ("bnb-nf4", config("gptq-4"), "tensor layer.weight"),
    ],
)
def test_other_methods_and_layouts(case: str, changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    del tensors["expected"]
    with pytest.raises(CheckpointError, match=re.escape(words)):
        Checkpoint(write(tmp_path / "checkpoint", changed, tensors))


@pytest.mark.parametrize(("case", "part"), [("gptq-4-ordered", "g_idx"), ("ct-packed-ordered", "weight_g_idx")])
@pytest.mark.parametrize("number", [-1, 2])
def test_groups_that_are_not_there(case: str, part: str, number: int, tmp_path: Path) -> None:
    tensors = tensors_of(case)
    del tensors["expected"]
    tensors[f"layer.{part}"][5] = number
    weight = Checkpoint(write(tmp_path / "checkpoint", CASES[case], tensors)).tensors["layer.weight"]
    with pytest.raises(CheckpointError, match="there are 2"):
        next(weight.blocks())


def test_scales_that_are_not_numbers(tmp_path: Path) -> None:
    tensors = tensors_of("fp8-block")
    del tensors["expected"]
    tensors["layer.weight_scale_inv"][1, 2] = float("nan")
    weight = Checkpoint(write(tmp_path / "checkpoint", CASES["fp8-block"], tensors)).tensors["layer.weight"]
    with pytest.raises(CheckpointError, match=re.escape("layer.weight has NaN or infinite")):
        next(weight.blocks())


ODD: tuple[Any, ...] = (None, True, -1, 0, 2**40, 0.5, "x", [1, 2, 3], {"a": 1})


def with_odd_values(values: Any) -> Iterator[Any]:
    """Yield the JSON with an odd value in place of each of its values in turn."""
    for key in values if isinstance(values, dict) else ():
        for odd in (*ODD, *with_odd_values(values[key])):
            yield {**values, key: odd}


@pytest.mark.parametrize(
    "case", ["awq", "bnb-int8", "ct-packed-asymmetric", "ct-float-blocks", "fp8-block", "gptq-4-ordered"]
)
def test_odd_settings(case: str, tmp_path: Path) -> None:
    """A weight of the same shape, or an error that names what is wrong."""
    tensors = tensors_of(case)
    shape = tensors.pop("expected").shape
    folder, refused = write(tmp_path / "checkpoint", CASES[case], tensors), 0
    for config in with_odd_values(CASES[case]):
        (folder / "config.json").write_text(json.dumps({"model_type": "any", **config}))
        try:
            weight = Checkpoint(folder).tensors["layer.weight"]
            assert sum(block.size for block in weight.blocks()) == np.prod(shape)
        except CheckpointError:
            refused += 1
    assert refused


def test_a_weight_is_computed_in_blocks(tmp_path: Path) -> None:
    """Never all of it at once, which would take 64 MiB here."""
    size, groups = 1 << 13, 1 << 6
    tensors = {
        "layer.qweight": torch.zeros(size // 16, size, dtype=torch.int32),
        "layer.qzeros": torch.zeros(groups // 2, size // 8, dtype=torch.int32),
        "layer.scales": torch.ones(groups // 2, size, dtype=torch.float16),
        "layer.g_idx": torch.arange(size // 2, dtype=torch.int32) // (size // groups),
    }
    weight = Checkpoint(write(tmp_path / "checkpoint", CASES["gptq-4"], tensors)).tensors["layer.weight"]
    tracemalloc.start()
    assert sum(block.size for block in weight.blocks()) == size * size // 2
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
