"""Every family's conversion proves itself, and the proof beside transformers knows no family."""

from __future__ import annotations

import pytest

from pocketvlm.files.bundle import Bundle
from pocketvlm_converters.proof.verify import verify
from store import Store
from tiers import slow_but
from tiny import families

# The first variant of each family, and Pixtral, which has its own processor; test_faithful.py has them all.
FIRST = [(name, next(iter(tiny.VARIANTS))) for name, tiny in families().items()]
CASES = slow_but([*FIRST, ("mistral3", "pixtral")], FIRST[0])


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_proof(case: tuple[str, str], store: Store) -> None:
    name, variant = case
    checkpoint = store.checkpoint(name, **families()[name].VARIANTS[variant])
    bundle = store.bundle(checkpoint, verify=True)
    proof = Bundle(bundle).manifest.proof
    assert proof is not None and proof.runs[0].deviation is None
    _, reference = verify(bundle, checkpoint)
    assert reference.deviation is None
    values = {check.measured: check.value for check in reference.checks}
    assert values["prompts of the same tokens"] == 1 and values["same of 32 greedy tokens"] == 1
    assert values["worst cosine, libmtmd f32"] >= 0.9999 and values["worst cosine, onnxruntime fp32"] >= 0.9999  # type: ignore[operator]
