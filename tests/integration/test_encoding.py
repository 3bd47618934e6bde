"""How many tiles are encoded at a time, on the model in the box."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm import VLM

TILE = 96


@pytest.fixture
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, parallel=2, context_size=2048, threads=2, vision="onnx") as loaded:
        yield loaded


def noise(seed: int) -> Image.Image:
    """Four tiles and the overview."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (2 * TILE, 2 * TILE, 3), dtype=np.uint8))


def asked(picture: Image.Image | None, text: str = "What colour is the circle?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    return [{"role": "user", "content": [{"type": "image", "image": picture}, *parts] if picture else parts}]


@contextmanager
def watched(vlm: VLM, begin: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Afterwards the list holds, for each run of the encoder, how many there were at that moment."""
    found: list[int] = []
    running, lock = [0], threading.Lock()
    encoder: Any = vlm._engine._vision._encoder  # type: ignore[attr-defined]
    original = encoder.encode_tile

    def watch(tile: Any) -> Any:
        with lock:
            running[0] += 1
            found.append(running[0])
        try:
            begin()
            return original(tile)
        finally:
            with lock:
                running[0] -= 1

    encoder.encode_tile = watch
    try:
        yield found
    finally:
        del encoder.encode_tile


def test_two_while_nobody_else_is_there(vlm: VLM, iota_bundle: Path) -> None:
    both = threading.Barrier(2, timeout=20)
    turns = itertools.count()  # whose next() is one step of the interpreter

    def begin() -> None:
        if next(turns) < 4:  # the fifth has nobody to wait for
            both.wait()

    with watched(vlm, begin) as runs:
        answer = vlm.chat(asked(noise(1)), max_tokens=8)
    assert sorted(runs) == [1, 1, 1, 2, 2]
    told = answer.timings.images[0]
    assert told.encoded == 5
    with VLM.load(iota_bundle, context_size=2048, vision="onnx") as alone:
        assert alone.chat(asked(noise(1)), max_tokens=8).text == answer.text


def test_time_in_the_encoder_counts_once(vlm: VLM) -> None:
    with watched(vlm, lambda: time.sleep(0.2)):
        began = time.perf_counter()
        told = vlm.chat(asked(noise(2)), max_tokens=1).timings.images[0]
        took = 1000 * (time.perf_counter() - began)
    assert 3 * 200 <= told.encode_ms <= took, "five tiles in three turns"


def test_one_beside_an_answer(vlm: VLM) -> None:
    ends = {str(token): -100.0 for token in range(vlm._engine._model.n_vocab) if vlm._engine._model.is_end(token)}  # type: ignore[attr-defined]
    with closing(vlm.stream(asked(None, "Hello."), max_tokens=1900, logit_bias=ends)) as stream, watched(vlm) as runs:
        next(stream)
        found: list[Any] = []
        other = threading.Thread(target=lambda: found.append(vlm.chat(asked(noise(3)), max_tokens=1)))
        other.start()
        while other.is_alive():
            next(stream)
        other.join()
    assert found
    assert runs == [1] * 5


def test_tiles_that_are_alike_are_encoded_once(vlm: VLM) -> None:
    with watched(vlm) as runs:
        vlm.chat(asked(Image.new("RGB", (2 * TILE, 2 * TILE), "white")), max_tokens=1)
    assert len(runs) == 1
