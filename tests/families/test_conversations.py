"""Whoever remembers answers as who has forgotten all: every family, and models whose cache cannot be cut back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

import hybrid
from conversations import CLOSE, answer, compare, said
from pocketvlm import VLM
from pocketvlm_converters.convert import convert
from tiny import families

pytestmark = pytest.mark.oracle

HYBRIDS = {"hybrid": 0, "hybrid with windows": 20}


@pytest.fixture(scope="module", params=["iota", *HYBRIDS, *families()])
def load(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, iota_onnx: Path
) -> Callable[..., VLM]:
    name, folder = request.param, tmp_path_factory.mktemp("conversations")
    exact = partial(VLM.load, exact=True, context_size=1536, vision="gguf")
    model, mmproj = iota_onnx / "model-F32.gguf", iota_onnx / "mmproj-f32.gguf"
    if name == "iota":
        return partial(exact, model=model, mmproj=mmproj)
    if name in HYBRIDS:
        return partial(exact, model=hybrid.save(model, folder / "hybrid.gguf", window=HYBRIDS[name]), mmproj=mmproj)
    tiny = families()[name]
    tiny.save(tiny.model(**next(iter(tiny.VARIANTS.values()))), folder / "checkpoint")
    return partial(exact, convert(folder / "checkpoint", folder / "bundle", quantize="F32", mmproj="f32").path)


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
