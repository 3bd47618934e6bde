"""What `--dry-run` says is what a conversion does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import typer
from typer.testing import CliRunner

from pocketvlm.engine.loading.loader import CONTEXT_LIMIT
from pocketvlm.errors import CheckpointError, OutputError, QuantizationError
from pocketvlm_converters.cli.convert import convert as command
from pocketvlm_converters.convert import convert
from pocketvlm_converters.dry_run import CONTEXT, Plan, PlannedTensor, condensed, plan_conversion
from pocketvlm_converters.gguf import read_tensors

KINDS = [
    {"quantize": "Q4_K_M"},
    {"quantize": "F16", "mmproj": "bf16", "onnx": "fp16"},
    {"quantize": "bf16", "mmproj": "f32", "onnx": "fp32"},
    {"quantize": "Q8_0", "mmproj": "mixed", "onnx": "int4"},
    {"quantize": "Q2_0", "mmproj": "q4_0", "onnx": "none"},
    {"quantize": "IQ3_XXS", "mmproj": "q5_1", "onnx": "none", "imatrix": "auto"},
    {"quantize": "Q3_K_M", "mmproj": "none", "imatrix": "auto"},
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save: Any) -> Path:
    """Widths that fit every type but for one; layers enough that a type may change between them."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    save(make_model(hidden_size=256, intermediate_size=288, num_hidden_layers=4, tied=False), folder)
    return folder


def compare(checkpoint: Path, folder: Path, **options: Any) -> Plan:
    plan = plan_conversion(checkpoint, "bundle", **options)
    assert list(folder.iterdir()) == []
    bundle = convert(checkpoint, folder / "bundle", **options, verify=False)
    assert plan.notes == bundle.manifest.notes
    found = [(entry.name, entry.role, entry.quantization, entry.size) for entry in bundle.manifest.files]
    assert [(file.name, file.role, file.kind, file.size) for file in plan.files] == found
    for file in plan.files:
        if file.name.endswith(".gguf"):
            real = {tensor.name: (tensor.shape, tensor.kind) for tensor in read_tensors(bundle.path / file.name)}
            kinds = {t.name: (t.shape, t.kind if t.kind in gguf.GGMLQuantizationType.__members__ else "type 42")
                     for t in file.tensors}  # fmt: skip
            assert kinds == real
    return plan


@pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(options.values()))
def test_sizes_and_types_are_the_true_ones(wide: Path, tmp_path: Path, options: dict[str, str]) -> None:
    compare(wide, tmp_path, **options)


def test_weights_beside_the_graph(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketvlm_converters.onnx.graph._INLINE_LIMIT", 1000)
    plan = compare(wide, tmp_path, quantize="F16", onnx="fp32")
    assert [file.role for file in plan.files] == ["model", "mmproj", "vision", "data"]


def test_memory(wide: Path) -> None:
    plan = plan_conversion(wide, "bundle", quantize="F32", mmproj="f32", onnx="none")
    assert CONTEXT == CONTEXT_LIMIT and plan.context == 2048
    # Keys and values of 2 heads of 64 in float16, in 4 layers.
    assert plan.cache == 2 * 2048 * 4 * 2 * (64 + 64)
    assert plan.weights == plan.size and plan.running > plan.weights + plan.cache
    assert plan.converting > 100e6


def test_condensed() -> None:
    tensors = [
        PlannedTensor("token_embd.weight", (9, 4), "Q6_K", 36),
        *(PlannedTensor(f"blk.{i}.ffn_up.weight", (4, 4), "Q4_K" if i < 2 else "Q6_K", 10 + i) for i in range(3)),
        PlannedTensor("blk.3.ffn_up.weight", (8, 4), "Q6_K", 20),
    ]
    assert [(count, t.name, t.shape, t.kind, t.size) for count, t in condensed(tensors)] == [
        (1, "token_embd.weight", (9, 4), "Q6_K", 36),
        (2, "blk.*.ffn_up.weight", (4, 4), "Q4_K", 21),
        (1, "blk.*.ffn_up.weight", (4, 4), "Q6_K", 12),
        (1, "blk.*.ffn_up.weight", (8, 4), "Q6_K", 20),
    ]


def test_it_refuses_what_convert_refuses(wide: Path, checkpoint: Path, edit: Any, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="IQ2_M needs an importance matrix"):
        plan_conversion(wide, "bundle", quantize="IQ2_M")
    with pytest.raises(QuantizationError, match="cannot both be none"):
        plan_conversion(wide, "bundle", mmproj="none", onnx="none")
    (tmp_path / "x.dat").write_bytes(b"something else")
    with pytest.raises(QuantizationError, match="is not an importance matrix"):
        plan_conversion(wide, "bundle", imatrix=tmp_path / "x.dat")
    edit(checkpoint / "config.json", {"text_config.intermediate_size": 128})
    with pytest.raises(CheckpointError, match="the configuration says"):
        plan_conversion(checkpoint, "bundle")


def test_command(wide: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    short, full = (
        CliRunner().invoke(app, [str(wide), "-o", str(tmp_path / "bundle"), "--dry-run", *more])
        for more in ([], ["--all"])
    )
    for result in (short, full):
        assert result.exit_code == 0, result.output
        assert "model-Q4_K_M.gguf" in result.stdout and "vision-int8.onnx" in result.stdout
        assert "note: " in result.stderr
        totals = [line.split()[0] for line in result.stdout.splitlines()[:3]]
        assert totals == ["total", "memory", "memory"], "what one asks for comes first"
    assert "blk.*.attn_q.weight" in short.stdout and "blk.3.attn_q.weight" not in short.stdout
    assert "blk.3.attn_q.weight" in full.stdout and "blk.*" not in full.stdout
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(app, [str(wide), "--dry-run"]).exit_code == 0
    assert CliRunner().invoke(app, [str(wide)]).exit_code == 2


def test_no_room_for_the_rehearsal(wide: Path, file_limit: Any) -> None:
    with file_limit() as limit:
        limit(1000)
        with pytest.raises(OutputError, match=r"cannot be written: .*nothing was written"):
            plan_conversion(wide, "bundle", quantize="f16", onnx="none")
