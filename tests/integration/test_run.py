"""Tokens and pictures of a prompt in one batch of embeddings: fewer batches, and the same answers."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

import hybrid
from engine_seam import generate
from integration.asking import asked, disc, generation, settle
from pocketvlm import VLM
from pocketvlm.engine.interface import Token
from pocketvlm.engine.loading import loader
from pocketvlm.files.bundle import Bundle
from pocketvlm.files.gguf_header import read_header
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.quantize import quantize_gguf
from pocketvlm.native.token_embeddings import TokenEmbeddings, token_embeddings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """(thread, method, rows) of everything that is evaluated."""
    found: list[tuple[str, str, int]] = []

    def counted(name: str, size: Any) -> None:
        original = getattr(Context, name)

        def run(self: Context, first: Any, *rest: Any, **options: Any) -> None:
            found.append((threading.current_thread().name, name, size(first)))
            original(self, first, *rest, **options)

        monkeypatch.setattr(Context, name, run)

    counted("decode", lambda batch: batch.count)
    counted("decode_embeddings", len)
    return found


def test_one_batch(iota_bundle: Path, calls: list[tuple[str, str, int]]) -> None:
    """At first sight, when all tiles are encoded; and where they are known, but stand after other text."""
    picture = disc("red", size=(400, 300))
    text = {"type": "text", "text": "Something else."}
    parts = [text, {"type": "image", "image": picture}, text]
    with VLM.load(iota_bundle) as vlm:
        vlm.chat(asked("Hello."), max_tokens=1)  # after the trial of the table
        for question in (asked("Describe the picture.", picture), [{"role": "user", "content": parts}]):
            calls.clear()
            answer = vlm.chat(question, max_tokens=1)
            new = answer.usage.prompt_tokens - answer.usage.prompt_tokens_details.cached_tokens
            assert [(name, rows) for _, name, rows in calls] == [("decode_embeddings", new)]
    assert answer.timings.images[0].tiles > 2
    assert answer.timings.images[0].cache == "memory"


def test_batches_may_end_anywhere(iota_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tile, within the tokens between two, and where one begins."""
    question = asked("Describe the pictures.", disc("red", 1, (400, 300)), disc("blue", 2))
    files = {"model": iota_onnx / "model-F32.gguf", "mmproj": iota_onnx / "mmproj-f32.gguf"}
    found = []
    for rows in (512, 24, 5):
        monkeypatch.setattr(loader, "BATCH_ROWS", rows)
        with VLM.load(**files, exact=True, context_size=512) as vlm:
            vlm.chat(question, max_tokens=1)
            vlm.chat(asked("Hello."), max_tokens=1)  # takes the lane, so that all of it is evaluated again
            answer = vlm.chat(question, max_tokens=4, logprobs=True, top_logprobs=3)
        assert answer.usage.prompt_tokens_details.cached_tokens < 20
        assert answer.choices[0].logprobs
        found.append([top for token in answer.choices[0].logprobs.content for top in token.top_logprobs])
    for other in found[1:]:
        assert [top.bytes for top in other] == [top.bytes for top in found[0]]
        assert [top.logprob for top in other] == pytest.approx([top.logprob for top in found[0]], abs=1e-4)


def test_beside_an_answer(iota_bundle: Path, calls: list[tuple[str, str, int]]) -> None:
    """On the side, too, the tokens between tiles go with them."""
    picture = disc("green", size=(400, 300))
    with VLM.load(iota_bundle, parallel=2, context_size=1024, threads=2) as vlm:
        vlm.chat(asked("Describe the picture.", picture), max_tokens=1)
        settle(vlm)
        with closing(generate(vlm, generation(vlm, asked("Hello."), 900, endless=True))) as stream:
            while not isinstance(next(stream), Token):
                pass
            calls.clear()
            vlm.chat(asked("word " * 20 + "What is it?", picture, picture), max_tokens=1)
        settle(vlm)
    aside = [name for thread, name, _ in calls if thread == "pocketvlm-background"]
    assert set(aside) == {"decode_embeddings"}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q5_0", "Q4_K_M"])
def test_rows_are_what_tokens_are(iota_onnx: Path, kind: str, tmp_path: Path) -> None:
    file = iota_onnx / "model-F32.gguf"
    if kind != "F32":
        quantize_gguf(file, file := tmp_path / "model.gguf", kind)
    stored = next(tensor for tensor in GGUFReader(file).tensors if tensor.name == "token_embd.weight")
    with Model(file) as model, Context(model, n_ctx=256, n_batch=32, threads=1) as context:
        table = token_embeddings(model, read_header(file), context)
        assert table is not None
        for token in (0, 7, model.n_vocab - 1):
            expected = dequantize(stored.data[token : token + 1], GGMLQuantizationType(stored.tensor_type))
            assert np.abs(table.row(token) - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("window", [0, 20])
def test_rows_of_a_hybrid_model(iota_onnx: Path, window: int, tmp_path: Path) -> None:
    """Its state cannot be cut back, so the trial begins again."""
    file = hybrid.save(iota_onnx / "model-F32.gguf", tmp_path / "hybrid.gguf", window=window)
    with Model(file) as model, Context(model, n_ctx=256, n_batch=32, threads=1) as context:
        table = token_embeddings(model, read_header(file), context)
        assert table is not None
        context.decode_tokens([3, 5, 7], 0)
        expected = context.logits()
        context.clear()
        rows = np.concatenate([table.row(token) for token in (3, 5, 7)])
        context.decode_embeddings(rows, context.positions(0, 3))
        assert np.array_equal(context.logits(), expected)


def test_other_rows_are_refused(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Bundle(iota_bundle).file("model")
    assert file is not None
    row = TokenEmbeddings.row
    with Model(file) as model, Context(model, n_ctx=256, n_batch=32, threads=1) as context:
        monkeypatch.setattr(TokenEmbeddings, "row", lambda self, token: row(self, token) * np.float32(1.01))
        assert token_embeddings(model, read_header(file), context) is None
