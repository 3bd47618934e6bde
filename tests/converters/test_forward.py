"""Samples through libllama: the tokens, positions and logits of a chat about the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_seam import last_logits
from pocketvlm import VLM
from pocketvlm.native.llama import Model
from pocketvlm_converters.samples.forward import ANSWER, Exchange, Loaded, answers, context_for
from pocketvlm_converters.samples.sets import Sample, calibration_samples, proof_samples


def logits_of(model: Path, exchange: Exchange, block: int) -> np.ndarray[Any, Any]:
    with Model(model, gpu_layers=0, mapped=True) as loaded, context_for(loaded, [exchange]) as context:
        blocks = [(tokens, rows.copy()) for tokens, rows in answers(context, exchange, block)]
    assert sum((tokens for tokens, _ in blocks), ()) == exchange.answer
    return np.concatenate([rows for _, rows in blocks])


@pytest.mark.parametrize("encoder", ["mmproj-f32.gguf", "vision-fp32.onnx"])
@pytest.mark.parametrize("number", [0, 7], ids=["one picture", "four pictures"])
def test_as_a_chat(iota_onnx: Path, encoder: str, number: int) -> None:
    """The logits behind the first token are those that a chat samples from, and blocks change nothing."""
    sample = proof_samples()[number]
    with Loaded(iota_onnx / "model-F32.gguf", iota_onnx / encoder) as loaded:
        exchange = loaded.exchange(sample)
    assert len(exchange.answer) == ANSWER
    logits = logits_of(iota_onnx / "model-F32.gguf", exchange, 32)
    np.testing.assert_allclose(logits_of(iota_onnx / "model-F32.gguf", exchange, 7), logits, atol=1e-4)
    user = [*({"type": "image", "image": p} for p in sample.pictures), {"type": "text", "text": sample.question}]
    vision: Any = "onnx" if encoder.endswith("onnx") else "gguf"
    with VLM.load(iota_onnx, exact=True, vision=vision, threads=1) as vlm:
        vlm.chat([{"role": "user", "content": user}], max_tokens=1)
        np.testing.assert_allclose(last_logits(vlm), logits[0], atol=1e-4)


def test_the_answer_ends_its_turn(iota_onnx: Path) -> None:
    sample = Sample(calibration_samples()[3].pictures, "What is in the picture?", "A square")
    with Loaded(iota_onnx / "model-F32.gguf", iota_onnx / "vision-fp32.onnx") as loaded:
        answer = loaded.exchange(sample).answer
        assert b"".join(map(loaded.model.piece, answer)).decode().strip() == "A square"
        assert any(map(loaded.model.is_end, answer))
