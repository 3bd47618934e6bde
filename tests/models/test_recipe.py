"""iota's recipe: what it draws follows its seed, and what it trains on is what chatting looks like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from iota.hints import CLASSES, IGNORED, targets
from iota.questions import conversation
from iota.samples import Phase, Sampler
from iota.scenes import CORNERS, draw, random_scene
from iota.train import CHECKPOINT, FAMILY

PAIRS = Phase(until=1, pairs=1.0, text=0.5, low=0.5, high=0.2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def test_a_seed_fixes_pixels_and_words(tokenizer: Tokenizer) -> None:
    one, two = (Sampler(tokenizer, FAMILY, 3).sample(11, PAIRS) for _ in range(2))
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.tiles, two.tiles)
    other = Sampler(tokenizer, FAMILY, 4).sample(11, PAIRS)
    assert not np.array_equal(one.ids, other.ids)


@pytest.mark.oracle
def test_samples_are_what_the_chat_template_writes(tokenizer: Tokenizer) -> None:
    """Rendered by transformers from the turns alone, a sample has the same tokens."""
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(CHECKPOINT)
    compared = 0
    for index in range(40):
        sample = Sampler(tokenizer, FAMILY, 5).sample(index, Phase(1, pairs=0.5, text=0.5, low=1.0, high=0.0))
        decoded = tokenizer.decode(sample.ids.tolist(), skip_special_tokens=False)
        if "System:" in decoded:
            continue
        messages = []
        for turn in sample.turns:
            shown = [{"type": "image"} for _ in turn.pictures]
            said = [{"type": "text", "text": turn.question}]
            text_first = shown and f"User: {turn.question}<fake" in decoded
            messages.append({"role": "user", "content": [*said, *shown] if text_first else [*shown, *said]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        text = processor.apply_chat_template(messages)
        picture = f"<fake_token_around_image><global-img>{'<image>' * 16}<fake_token_around_image>"
        expected = processor.tokenizer(text.replace("<image>", picture))["input_ids"]
        assert sample.ids.tolist() == expected
        compared += 1
    assert compared > 20


def test_answers_and_their_end_are_learned(tokenizer: Tokenizer) -> None:
    sample = Sampler(tokenizer, FAMILY, 6).sample(2, PAIRS)
    end = tokenizer.token_to_id("<end_of_utterance>")
    for number, turn in enumerate(sample.turns):
        ids = sample.ids[sample.kinds == number].tolist()
        assert ids[-1] == end
        assert tokenizer.decode(ids[:-1]) == f" {turn.answer}"
    assert (sample.kinds >= 0).sum() == sample.learned.sum()


def test_scenes_are_consistent() -> None:
    rng = Random(8)
    for _ in range(300):
        scene = random_scene(rng)
        places = [shape.place for shape in scene.shapes]
        assert len(set(places)) == len(places) <= 4
        assert places == [place for place in (*CORNERS, "middle") if place in places]
        found = targets(scene)
        assert len(found) == len(CLASSES)
        asked = [(value, classes) for value, classes in zip(found, CLASSES, strict=True) if value != IGNORED]
        assert all(0 <= value < classes for value, classes in asked)
        assert sum(value > 0 for value in found[0:15:3]) == len(scene.shapes)


def test_the_same_scene_is_drawn_in_many_ways() -> None:
    scene = random_scene(Random(9))
    pictures = [draw(scene, Random(seed)) for seed in range(20)]
    assert len({picture.size for picture in pictures}) > 5
    assert len({picture.getpixel((0, 0)) for picture in pictures}) > 5


def test_no_question_contradicts_the_scene() -> None:
    """Every yes/no and count answer is checked against the scene by another way of looking."""
    rng = Random(10)
    for _ in range(400):
        scene = random_scene(rng)
        for turn in conversation((scene,), rng, 8):
            words = turn.question.rstrip("?.").split()
            if turn.kind == "count" and words[:2] == ["How", "many"] and words[2] == "shapes":
                assert turn.answer == str(len(scene.shapes))
            if turn.question.startswith("Is there anything"):
                place = turn.question.removeprefix("Is there anything at the ").rstrip("?")
                assert (turn.answer == "Yes") == any(shape.place == place for shape in scene.shapes)
            if turn.kind == "read":
                assert scene.text is not None
                assert turn.answer == scene.text.text


@pytest.mark.oracle
@pytest.mark.slow
def test_training_stops_and_resumes(tmp_path: Path) -> None:
    def train(steps: int) -> str:
        arguments = ["--steps", str(steps), "--batch", "2", "--threads", "1"]
        arguments += ["--state", str(tmp_path / "state.pt"), "--output", str(tmp_path / "checkpoint")]
        done = subprocess.run(
            [sys.executable, "-m", "iota.train", *arguments],
            cwd=CHECKPOINT.parents[1],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return done.stdout

    assert "resumed" not in train(1)
    assert "resumed at step 1" in train(2)
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_size > 10_000_000
