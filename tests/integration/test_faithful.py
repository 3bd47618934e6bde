"""The float32 pair against transformers: same pixels, same tokens, same answers, same logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from engine_seam import last_logits, units_of
from iota.questions import ask
from iota.scenes import draw, random_scene
from iota.train import CHECKPOINT
from pocketvlm import VLM
from pocketvlm.vision.families.smolvlm import SmolVLM
from tiers import slow_but

pytestmark = pytest.mark.oracle

SIZES = [
    *[(96, 96), (64, 48), (97, 96), (192, 96), (96, 192), (193, 97), (640, 480), (480, 640), (1000, 200), (200, 1000)],
    *[(31, 17), (8, 300), (300, 8), (333, 331), (1024, 768), (191, 193), (2000, 1999), (150, 60), (60, 150), (5, 5)],
]


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def vlm(iota_onnx: Path, request: pytest.FixtureRequest) -> Iterator[VLM]:
    with VLM.load(iota_onnx, exact=True, vision=request.param) as loaded:
        yield loaded


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_and_layout(processor: Any, size: tuple[int, int], split: bool) -> None:
    """detail high is the processor's own procedure, low its procedure without splitting."""
    picture = noise(size)
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    expected = processor(text=text, images=[picture], do_image_splitting=split, return_tensors="np")
    family = SmolVLM(tile=96, longest_edge=192, tokens_per_side=4)
    plan = family.plan(size, "high" if split else "low")
    tiles = np.stack(family.tiles(np.asarray(picture), plan))
    pixels = tiles.transpose(0, 3, 1, 2) / 127.5 - 1.0
    assert pixels.shape == expected["pixel_values"][0].shape
    assert np.abs(pixels - expected["pixel_values"][0]).max() <= 2 / 255  # one step of 255, on a scale of 2
    assert plan.tokens == int((expected["input_ids"][0] == processor.image_token_id).sum())
    spelled = "".join(piece if isinstance(piece, str) else "<image>" * piece.tokens for piece in plan.layout)
    assert spelled in processor.tokenizer.decode(expected["input_ids"][0])


@pytest.mark.parametrize("size", [(96, 96), (130, 50), (100, 150), (640, 480), (90, 97)])
def test_auto_is_the_processor_without_its_resize(processor: Any, size: tuple[int, int]) -> None:
    """The oracle of `auto`: the picture at the size it is used at, given to the processor with do_resize off."""
    family = SmolVLM(tile=96, longest_edge=192, tokens_per_side=4)
    picture = noise(size)
    plan = family.plan(size, "auto")
    resized = picture.resize(plan.used, Image.Resampling.LANCZOS)
    expected = processor(text="<image>", images=[resized], do_resize=False, return_tensors="np")["pixel_values"][0]
    pixels = np.stack(family.tiles(np.asarray(picture), plan)).transpose(0, 3, 1, 2) / 127.5 - 1.0
    assert np.abs(pixels - expected).max() <= 2 / 255


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


@pytest.mark.parametrize("scenes", slow_but([15, 100], 15))
def test_answers_tokens_and_logits(processor: Any, reference: Any, vlm: VLM, scenes: int) -> None:
    rng = Random(99)
    for _ in range(scenes):
        scene = random_scene(rng)
        picture = draw(scene, rng)
        turn = ask(scene, rng.choice(("describe", "count")), rng)
        assert turn is not None
        parts = [{"type": "image"}, {"type": "text", "text": turn.question}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = processor(text=text, images=[picture], return_tensors="pt")
        with torch.no_grad():
            logits = reference(**inputs).logits[0, -1].double().numpy()
            generated = reference.generate(**inputs, max_new_tokens=80, do_sample=False)[0]
        expected = processor.decode(generated[inputs["input_ids"].shape[1] :], skip_special_tokens=True)

        messages = [{"role": "user", "content": [parts[0] | {"image": picture, "detail": "high"}, parts[1]]}]
        units = units_of(vlm, messages)
        ids = [
            i for unit in units for i in ([unit] if isinstance(unit, int) else [processor.image_token_id] * unit.tokens)
        ]
        assert ids == inputs["input_ids"][0].tolist()

        answer = vlm.chat(messages, max_tokens=1)
        mine = last_logits(vlm).astype(np.float64)
        expected_log, mine_log = log_softmax(logits), log_softmax(mine)
        assert np.abs(logits - mine).max() < 1e-2
        assert float((np.exp(expected_log) * (expected_log - mine_log)).sum()) < 1e-6
        answer = vlm.chat(messages, max_tokens=80)
        assert answer.text == expected.strip()
