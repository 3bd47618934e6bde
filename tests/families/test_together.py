"""Every family's answers do not depend on who else is served: M-RoPE, pictures that are evaluated at once, windows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine_seam import generate
from integration.asking import generation
from pocketvlm import VLM
from pocketvlm.engine.interface import Token
from store import Store
from tiers import slow_but
from tiny import families

pytestmark = pytest.mark.oracle


def asked(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(40, 200)), int(rng.integers(40, 200)), 3)
    picture = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
    text = {"type": "text", "text": f"What is number {seed} about?"}
    before, after = (text, {"type": "image", "image": picture})
    return [{"role": "user", "content": [before, after] if seed % 2 else [after, before]}]


@pytest.mark.parametrize("name", slow_but(families(), "gemma3", "lfm2_vl", "qwen2_5_vl", "smolvlm"))
def test_together_as_alone(name: str, store: Store) -> None:
    bundle = store.family_bundle(name)

    def tokens(vlm: VLM, messages: list[dict[str, Any]], count: int = 12) -> list[int]:
        events = generate(vlm, generation(vlm, messages, count, endless=True))
        return [event.id for event in events if isinstance(event, Token)]

    with VLM.load(bundle, exact=True, context_size=2048, speculate="off") as alone:
        expected = [tokens(alone, asked(seed)) for seed in range(6)]
    assert len({tuple(answer) for answer in expected}) > 1, "the model must look at its pictures"
    with VLM.load(bundle, exact=True, context_size=2048, parallel=3, threads=2, speculate="on") as many:
        going_on = generation(many, [{"role": "user", "content": "Go on and on."}], 1900, endless=True)
        with closing(generate(many, going_on)) as stream:
            next(stream)

            def read() -> None:  # somebody who reads all the time, so that prompts are cut small
                for _ in stream:
                    pass

            with ThreadPoolExecutor(3) as pool:
                reading = pool.submit(read)
                found = list(pool.map(lambda seed: tokens(many, asked(seed)), range(6)))
                again = list(pool.map(lambda seed: tokens(many, asked(seed)), range(6)))
                many.cancel()
                reading.exception(60)
    assert found == expected
    assert again == expected
