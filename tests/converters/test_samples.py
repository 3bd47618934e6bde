"""The fixed picture-text set: the same everywhere, in two halves that share nothing, small enough to be affordable."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pocketvlm_converters.samples.sets import Sample, calibration_samples, proof_samples

SETS = {"proof": proof_samples, "calibration": calibration_samples}
# A change here makes proofs and importance matrices of before and after incomparable.
DIGESTS = {
    "proof": "fd69025e8cf57fc9e793b55c308e900f2b7ee1a81045cfeabb4496389d8b4345",
    "calibration": "17b11715e504974e58855c1072a768465e9ce01169531312f19d09e085b9084a",
}


def digest(samples: tuple[Sample, ...]) -> str:
    found = hashlib.sha256()
    for sample in samples:
        found.update(repr((sample.question, sample.answer, [p.shape for p in sample.pictures])).encode())
        for picture in sample.pictures:
            found.update(picture.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", SETS)
def test_the_same_on_every_machine(name: str) -> None:
    assert digest(SETS[name]()) == DIGESTS[name]


def test_nothing_in_common() -> None:
    one, two = proof_samples(), calibration_samples()
    for kind in ("question", "answer"):
        assert not {getattr(s, kind) for s in one} & {getattr(s, kind) for s in two}
    assert not {p.tobytes() for s in one for p in s.pictures} & {p.tobytes() for s in two for p in s.pictures}


@pytest.mark.parametrize("name", SETS)
def test_pictures(name: str) -> None:
    pictures = [picture for sample in SETS[name]() for picture in sample.pictures]
    assert all(picture.dtype == np.uint8 and picture.shape[2:] == (3,) for picture in pictures)
    assert all(max(picture.shape) <= 512 and picture.std() > 5 for picture in pictures)
    assert all(sample.pictures and sample.question and sample.answer for sample in SETS[name]())
    sizes = {picture.shape[:2] for picture in pictures}
    assert len(sizes) >= len(pictures) // 2
    assert {height > width for height, width in sizes} == {True, False}
    with pytest.raises(ValueError):
        pictures[0][:] = 0


def test_fewer() -> None:
    assert proof_samples(3) == proof_samples()[:3] and len(calibration_samples(5)) == 5
    assert (len(proof_samples()), len(calibration_samples())) == (8, 24)
