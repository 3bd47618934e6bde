"""Every family's answers do not depend on who else is served: M-RoPE, pictures that are evaluated at once, windows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm import VLM
from pocketvlm.engine.interface import Generation, Token
from pocketvlm.messages import ChatRequest
from pocketvlm.native.sampler import Sampling
from pocketvlm_converters.convert import convert
from tiny import families

pytestmark = pytest.mark.oracle

CASES = [(name, next(iter(tiny.VARIANTS))) for name, tiny in families().items()]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    name, variant = request.param
    tiny = families()[name]
    folder = tmp_path_factory.mktemp(name)
    tiny.save(tiny.model(**tiny.VARIANTS[variant]), folder / "checkpoint")
    yield convert(folder / "checkpoint", folder / "bundle", quantize="F32", mmproj="f32").path


def asked(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(40, 200)), int(rng.integers(40, 200)), 3)
    picture = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
    text = {"type": "text", "text": f"What is number {seed} about?"}
    before, after = (text, {"type": "image", "image": picture})
    return [{"role": "user", "content": [before, after] if seed % 2 else [after, before]}]


def test_together_as_alone(bundle: Path) -> None:
    def tokens(vlm: VLM, messages: list[dict[str, Any]], count: int = 12) -> list[int]:
        prompt = vlm._prompt(ChatRequest.parse(messages))
        engine: Any = vlm._engine
        ends = {token: -100.0 for token in range(engine._model.n_vocab) if engine._model.is_end(token)}
        request = Generation(prompt, Sampling(logit_bias=ends), max_tokens=count)
        return [event.id for event in engine.generate(request) if isinstance(event, Token)]

    with VLM.load(bundle, exact=True, context_size=2048, speculate="off") as alone:
        expected = [tokens(alone, asked(seed)) for seed in range(6)]
    assert len({tuple(answer) for answer in expected}) > 1, "the model must look at its pictures"
    with VLM.load(bundle, exact=True, context_size=2048, parallel=3, threads=2, speculate="on") as many:
        engine: Any = many._engine
        prompt = many._prompt(ChatRequest.parse([{"role": "user", "content": "Go on and on."}]))
        ends = {token: -100.0 for token in range(engine._model.n_vocab) if engine._model.is_end(token)}
        with closing(engine.generate(Generation(prompt, Sampling(logit_bias=ends), max_tokens=1900))) as stream:
            next(stream)

            def read() -> None:  # somebody who reads all the time, so that prompts are cut small
                for _ in stream:
                    pass

            with ThreadPoolExecutor(3) as pool:
                reading = pool.submit(read)
                found = list(pool.map(lambda seed: tokens(many, asked(seed)), range(6)))
                again = list(pool.map(lambda seed: tokens(many, asked(seed)), range(6)))
                many.cancel()
                reading.exception(30)
    assert found == expected
    assert again == expected
