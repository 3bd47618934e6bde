"""iota's decisions about whether something is there, on new scenes: how well they separate, and how honest they are."""

from __future__ import annotations

import pytest

from iota.decisions import area_under_curve, examples
from pocketvlm import VLM
from pocketvlm.decisions.calibration import expected_calibration_error, fit_temperature

COUNT, SEED = 250, 77_000


@pytest.mark.slow
def test_they_separate_and_are_honest() -> None:
    with VLM.load(threads=1) as vlm:
        known, new = (examples(vlm, COUNT, seed) for seed in (SEED, SEED + 1))
    temperature = fit_temperature(known)
    assert area_under_curve(new) >= 0.97
    assert expected_calibration_error([(example, temperature) for example in new]) <= 0.05
