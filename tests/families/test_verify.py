"""Every family's conversion proves itself, and the proof beside transformers knows no family."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm_converters.convert import convert
from pocketvlm_converters.proof.verify import verify
from store import EXACT, Store
from tiers import slow_but
from tiny import families

CASES = slow_but(
    [(name, variant) for name, tiny in families().items() for variant in tiny.VARIANTS],
    ("smolvlm", "smolvlm"),
)


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_proof(case: tuple[str, str], store: Store, tmp_path: Path) -> None:
    name, variant = case
    checkpoint = store.checkpoint(name, **families()[name].VARIANTS[variant])
    bundle = convert(checkpoint, tmp_path / "bundle", **EXACT)
    proof = bundle.manifest.proof
    assert proof is not None and proof.runs[0].deviation is None
    _, reference = verify(bundle.path, checkpoint)
    assert reference.deviation is None
    values = {check.measured: check.value for check in reference.checks}
    assert values["prompts of the same tokens"] == 1 and values["same of 32 greedy tokens"] == 1
    assert values["worst cosine, libmtmd f32"] >= 0.9999 and values["worst cosine, onnxruntime fp32"] >= 0.9999  # type: ignore[operator]
