"""Every family's conversion proves itself, and the proof beside transformers knows no family."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm_converters.convert import convert
from pocketvlm_converters.proof.verify import verify
from tiny import families


@pytest.mark.oracle
@pytest.mark.parametrize("name", families())
def test_proof(name: str, tmp_path: Path) -> None:
    tiny = families()[name]
    tiny.save(tiny.model(**next(iter(tiny.VARIANTS.values()))), tmp_path / "checkpoint")
    bundle = convert(tmp_path / "checkpoint", tmp_path / "bundle", quantize="F32", mmproj="f32", onnx="fp32")
    proof = bundle.manifest.proof
    assert proof is not None and proof.runs[0].deviation is None
    _, reference = verify(bundle.path, tmp_path / "checkpoint")
    assert reference.deviation is None
    values = {check.measured: check.value for check in reference.checks}
    assert values["prompts of the same tokens"] == 1 and values["same of 32 greedy tokens"] == 1
    assert values["worst cosine, libmtmd f32"] >= 0.9999 and values["worst cosine, onnxruntime fp32"] >= 0.9999  # type: ignore[operator]
