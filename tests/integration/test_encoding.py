"""How many tiles are encoded at a time, on the model in the box."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine_seam import encoding_as, never_ending
from integration.asking import settle
from pocketvlm import VLM
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import GenerationCancelledError
from pocketvlm.messages import ChatRequest

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

    def watch(original: Callable[[Any], Any], tile: Any) -> Any:
        with lock:
            running[0] += 1
            found.append(running[0])
        try:
            begin()
            return original(tile)
        finally:
            with lock:
                running[0] -= 1

    with encoding_as(vlm, watch):
        yield found


def test_two_while_nobody_else_is_there(vlm: VLM, iota_bundle: Path) -> None:
    both = threading.Barrier(2, timeout=60)
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


@contextmanager
def beside_an_answer(vlm: VLM) -> Iterator[Callable[[], None]]:
    """The call lets it go on by a token."""
    bias = never_ending(vlm)
    with closing(vlm.stream(asked(None, "Hello."), max_tokens=1900, logit_bias=bias)) as stream:
        next(stream)
        yield lambda: void(next(stream, None), time.sleep(0.002))


def void(*_: object) -> None: ...


def cold(bundle: Path, picture: Image.Image) -> str:
    with VLM.load(bundle, context_size=2048, vision="onnx") as vlm:
        return vlm.chat(asked(picture), max_tokens=8).text


def test_one_beside_an_answer(vlm: VLM, iota_bundle: Path) -> None:
    with beside_an_answer(vlm) as go_on, watched(vlm) as runs, ThreadPoolExecutor(1) as pool:
        other = pool.submit(vlm.chat, asked(noise(3)), max_tokens=8)
        while not other.done():
            go_on()
    assert other.result().timings.images[0].encoded == 5
    assert runs == [1] * 5
    assert other.result().text == cold(iota_bundle, noise(3))


def test_who_leaves_while_two_are_encoded(vlm: VLM, iota_bundle: Path) -> None:
    both, leave = threading.Barrier(3, timeout=60), threading.Event()

    def begin() -> None:
        if not leave.is_set():
            both.wait()
            assert leave.wait(60)

    request, cancellation = ChatRequest.parse(asked(noise(6))), CancellationToken()
    with watched(vlm, begin) as runs, ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: list(vlm.run(request, cancellation=cancellation)))
        both.wait()
        cancellation.stop()
        assert isinstance(other.exception(60), GenerationCancelledError)
        leave.set()
        settle(vlm)
    assert sorted(runs) == [1, 2]
    assert vlm.chat(asked(noise(6)), max_tokens=8).text == cold(iota_bundle, noise(6))


def test_tiles_that_are_alike_are_encoded_once(vlm: VLM) -> None:
    with watched(vlm) as runs:
        vlm.chat(asked(Image.new("RGB", (2 * TILE, 2 * TILE), "white")), max_tokens=1)
    assert len(runs) == 1
