"""Whoever remembers answers as who has forgotten all: every family, and models whose cache cannot be cut back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest

import hybrid
from conversations import CLOSE, answer, compare, said
from engine_seam import sequences
from pocketvlm import VLM
from pocketvlm.native.context import Batch, Context
from store import Store
from tiers import slow_but
from tiny import families

pytestmark = pytest.mark.oracle

HYBRIDS = {"hybrid": 0, "hybrid with windows": 20}


@pytest.fixture(
    scope="module",
    params=slow_but(["iota", *HYBRIDS, *families()], "iota", "hybrid", "hybrid with windows", "gemma3", "qwen2_5_vl"),
)
def load(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, iota_onnx: Path, store: Store
) -> Callable[..., VLM]:
    name, folder = request.param, tmp_path_factory.mktemp("conversations")
    exact = partial(VLM.load, exact=True, context_size=1536, vision="gguf")
    model, mmproj = iota_onnx / "model-F32.gguf", iota_onnx / "mmproj-f32.gguf"
    if name == "iota":
        return partial(exact, model=model, mmproj=mmproj)
    if name in HYBRIDS:
        return partial(exact, model=hybrid.save(model, folder / "hybrid.gguf", window=HYBRIDS[name]), mmproj=mmproj)
    return partial(exact, store.family_bundle(name))


def test_as_with_a_cold_engine(load: Callable[..., VLM], request: pytest.FixtureRequest) -> None:
    difference = compare(load, range(request.config.getoption("--conversations")))
    print(difference)
    assert difference.other == 0
    assert difference.largest < CLOSE
    assert difference.cached > 0.3 * difference.prompt, "nothing was tested"


def test_goes_on_from_a_file(load: Callable[..., VLM], tmp_path: Path) -> None:
    rng = Random(5)
    with load() as vlm:
        messages = [said(rng, 1.0), {"role": "assistant", "content": answer(vlm, [said(rng)]).text or "So."}]
        messages[1]["content"] = answer(vlm, messages[:1]).text or "So."
        vlm.save(tmp_path / "talk", messages)
        after = [*messages, said(rng, 0.0)]
        expected = answer(vlm, after)
    with load(session=tmp_path / "talk") as restored:
        found = answer(restored, [*restored.conversation, after[-1]])
        edited = answer(restored, [*restored.conversation[:1], messages[1], said(rng, 1.0)])
    assert found.tokens == expected.tokens
    assert found.cached == expected.cached > 0
    assert edited.tokens


def test_batches_are_even_where_they_must_be(iota_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and prompts of other lengths at once: pieces of one batch could take each other's cells of a window."""
    model = hybrid.save(iota_onnx / "model-F32.gguf", tmp_path / "hybrid.gguf", window=20)
    seen: list[list[int]] = []
    decode = Context.decode

    def watched(context: Context, batch: Batch) -> None:
        seen.append(np.unique(sequences(batch), return_counts=True)[1].tolist())
        decode(context, batch)

    monkeypatch.setattr(Context, "decode", watched)
    with VLM.load(model=model, parallel=4, context_size=1536) as vlm, ThreadPoolExecutor(4) as pool:
        talks = [[said(Random(seed), 0, (1, 80))] for seed in range(16)]
        list(pool.map(lambda messages: answer(vlm, messages), talks))
    assert any(len(counts) > 1 for counts in seen), "nothing went together"
    assert all(len(set(counts)) == 1 for counts in seen)
