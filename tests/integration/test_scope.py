"""A model of narrow training says what it knows, and when it guesses: iota, as its card states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from engine_seam import engine_of
from integration.asking import asked, generation
from iota.certainty import QUESTIONS, foreign, known
from iota.foreign import foreign_pictures
from pocketvlm import VLM, ImageTimings
from pocketvlm.cli.run_notes import RunNotes
from pocketvlm.engine.interface import Finished
from pocketvlm.engine.scheduling.certainty import CertaintyMeter
from pocketvlm.files.bundle import Bundle, Manifest

GUESS = "iota is guessing: it knows only drawn shapes, colours, places, numbers and a few words"
DESCRIBE = "What is in the picture?"


@pytest.fixture(scope="module")
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def smiley() -> Image.Image:
    return dict(foreign_pictures())["smiley"]


def test_the_threshold_divides_scenes_from_other_pictures(vlm: VLM) -> None:
    assert vlm.scope and vlm.scope.min_probability
    scenes = [*known(vlm, 60, seed=5)]
    assert sum(one.certainty >= vlm.scope.min_probability for one in scenes if one.right) >= 0.9 * len(scenes)
    drawn = [one for one in foreign(vlm, []) if one.group in QUESTIONS[:3]]
    assert sum(one.certainty < vlm.scope.min_probability for one in drawn) >= 0.9 * len(drawn)


def test_guesses_are_noted(vlm: VLM, smiley: Image.Image, sample_png: Path) -> None:
    known_answer = vlm.chat(asked(DESCRIBE, sample_png))
    assert known_answer.notes is None and "notes" not in known_answer.model_dump()
    assert vlm.chat(asked(DESCRIBE, smiley)).notes == [GUESS]
    *_, last = vlm.stream(asked(DESCRIBE, smiley))
    assert last.notes == [GUESS] and last.timings
    both = vlm.chat(asked(DESCRIBE, smiley), n=2, stream_options={"include_usage": True})
    assert both.notes == [GUESS]
    # iota never learned to write JSON.
    assert vlm.chat(asked(DESCRIBE, sample_png), response_format={"type": "json_object"}).notes == [GUESS]
    # Where the request makes tokens unlikely, they mean nothing.
    for fields in ({"temperature": 0.5}, {"logit_bias": {"5": -1.0}}, {"min_tokens": 20}, {"repeat_penalty": 1.2}):
        assert vlm.chat(asked(DESCRIBE, smiley), **fields).notes is None, fields


def test_models_without_a_scope_measure_nothing(iota_onnx: Path, smiley: Image.Image) -> None:
    with VLM.load(iota_onnx) as other:
        assert other.scope is None
        assert other.chat(asked(DESCRIBE, smiley)).notes is None
        with closing(engine_of(other).generate(generation(other, asked(DESCRIBE, smiley)))) as events:
            assert [event.certainty for event in events if isinstance(event, Finished)] == [None]


@pytest.mark.parametrize("supervised", [False, True])
def test_certainty_is_that_of_the_log_probabilities(
    iota_bundle: Path, smiley: Image.Image, sample_png: Path, supervised: bool
) -> None:
    with VLM.load(iota_bundle, exact=True, supervised=supervised) as vlm:
        for messages in (asked(DESCRIBE, smiley), asked(DESCRIBE, sample_png), asked("Is it red?", smiley)):
            vlm.chat(messages, max_tokens=1)  # from now on, both evaluate the same rows of the prompt
            scores = vlm.chat(messages, logprobs=True).choices[0].logprobs
            assert scores
            wanted = replace(generation(vlm, messages), measures_certainty=True)
            with closing(engine_of(vlm).generate(wanted)) as events:
                [certainty] = [event.certainty for event in events if isinstance(event, Finished)]
            assert certainty == pytest.approx(math.exp(min(token.logprob for token in scores.content)), rel=1e-4)


def test_a_meter_of_any_number_of_tokens() -> None:
    rng = np.random.default_rng(1)
    for count in (0, 1, 15, 16, 17, 40):
        rows = rng.normal(0, 5, (count, 50)).astype(np.float32)
        tokens = rng.integers(0, 50, count).tolist()
        meter = CertaintyMeter(50)
        for row, token in zip(rows, tokens, strict=True):
            meter.keep(row[::-1])  # not used: nothing was sampled from it
            meter.keep(row)
            meter.chose(token)
        shares = np.exp(rows.astype(np.float64)) / np.exp(rows.astype(np.float64)).sum(axis=1, keepdims=True)
        expected = min((share[token] for share, token in zip(shares, tokens, strict=True)), default=1.0)
        assert meter.certainty == pytest.approx(expected, rel=1e-4)


def test_only_manifests_with_a_scope_have_the_field(iota_bundle: Path, iota_onnx: Path) -> None:
    """Earlier versions refuse manifests with fields that they do not know."""
    assert "scope" not in Bundle(iota_onnx).manifest.model_dump(mode="json")
    manifest = Bundle(iota_bundle).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest and manifest.scope


# ---- what the command line says


def seen(**changes: Any) -> ImageTimings:
    fields: dict[str, Any] = {"original_size": (640, 480), "used_size": (192, 192), "tiles": 5, "tokens": 80}
    fields |= {"encoded": 5, "cache": "none"}
    times = dict.fromkeys(("read_ms", "preprocess_ms", "encode_ms"), 1.0)
    return ImageTimings(**{**fields, "shrunk": True, **times, **changes})


def test_a_run_says_things_once(vlm: VLM) -> None:
    notes = RunNotes(vlm)
    first, size = notes.about_answer(None, [seen()])
    assert first.startswith("iota knows only drawn shapes") and "pocketvlm models --fits free" in first
    assert size == "The picture of 640x480 was seen at 192x192 pixels, the most that the model sees here."
    assert notes.about_answer(None, [seen()]) == [] == notes.about_answer(None, [])
    assert notes.about_answer([GUESS], [seen()]) == [f"{GUESS}."] and notes.about_model() is None
    guessing, _ = RunNotes(vlm).about_answer([GUESS], [seen()])
    assert guessing.startswith(f"{GUESS}; for photographs") and guessing.count("knows only") == 1
    assert RunNotes(vlm).about_answer(None, []) == []


def test_a_remedy_is_named_where_there_is_one(vlm: VLM) -> None:
    notes = RunNotes(vlm)
    images = [seen(), seen(original_size=(900, 900), used_size=(96, 96), high_size=(192, 192)), seen(shrunk=False)]
    line = notes.about_answer(None, images)[-1]
    assert line == (
        "2 pictures were seen smaller than they are, such as 900x900 at 96x96 pixels; --detail high shows 192x192."
    )
    in_conversation = RunNotes(vlm).about_answer(None, images, high="/set detail high")[-1]
    assert in_conversation == line.replace("--detail high", "/set detail high")
    picture = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 200, 200), "red")

    def high_size(detail: str, image: Image.Image = picture) -> Any:
        part = {"type": "image", "image": image, "detail": detail}
        [timings] = vlm.chat([{"role": "user", "content": [part, DESCRIBE]}], max_tokens=1).timings.images
        assert timings.high_size is None or timings.high_size != timings.used_size
        return timings.high_size

    assert high_size("low") == (192, 192)
    assert high_size("auto") is None and high_size("high") is None
    assert high_size("low", picture.resize((60, 40))) is None
