"""How many tiles are encoded at a time, on the model in the box."""

from __future__ import annotations

import itertools
import os
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
from pocketvlm.engine.helper import idle_threads

from engine_seam import encoder_of, encoding_as, never_ending, told_to_stop, watch_rests
from pocketvlm import VLM
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.engine.scheduling import scheduler
from pocketvlm.errors import GenerationCancelledError
from pocketvlm.messages import ChatRequest

TILE = 96
idle = pytest.mark.skipif(not idle_threads(), reason="this system has no threads that run only where nobody else does")


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


@contextmanager
def beside_an_answer(vlm: VLM) -> Iterator[Callable[[], None]]:
    """The call lets it go on by a token."""
    bias = never_ending(vlm)
    with closing(vlm.stream(asked(None, "Hello."), max_tokens=1900, logit_bias=bias)) as stream:
        next(stream)
        yield lambda: void(next(stream, None), time.sleep(0.002))


def void(*_: object) -> None: ...


def seen_beside_an_answer(vlm: VLM, picture: Image.Image, begin: Callable[[], None] = lambda: None) -> tuple[Any, Any]:
    """What was answered, and how many tiles were encoded at each start of one."""
    with beside_an_answer(vlm) as go_on, watched(vlm, begin) as runs, ThreadPoolExecutor(1) as pool:
        other = pool.submit(vlm.chat, asked(picture), max_tokens=8)
        while not other.done():
            go_on()
    return other.result(), runs


def cold(bundle: Path, picture: Image.Image) -> str:
    with VLM.load(bundle, context_size=2048, vision="onnx") as vlm:
        return vlm.chat(asked(picture), max_tokens=8).text


def test_one_beside_an_answer_where_no_thread_is_idle(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "idle_threads", lambda: False)
    with VLM.load(iota_bundle, parallel=2, context_size=2048, threads=2, vision="onnx") as vlm:
        answer, runs = seen_beside_an_answer(vlm, noise(3))
    assert answer.timings.images[0].encoded == 5
    assert runs == [1] * 5


@idle
def test_a_second_beside_an_answer_in_spare_time(vlm: VLM, iota_bundle: Path) -> None:
    policies: dict[str, set[int]] = {}
    rests = watch_rests(vlm)
    both, turns = threading.Barrier(2, timeout=20), itertools.count()

    def begin() -> None:
        policies.setdefault(threading.current_thread().name, set()).add(os.sched_getscheduler(0))
        if 1 <= next(turns) <= 2:
            both.wait()
            end = time.monotonic() + 20
            while not any(seconds for seconds, _ in rests):
                assert time.monotonic() < end, "no step left time"
                time.sleep(0.001)

    answer, runs = seen_beside_an_answer(vlm, noise(4), begin)
    assert answer.timings.images[0].encoded == 5
    assert runs[0] == 1, "the first alone"
    assert max(runs) == 2
    assert policies == {"pocketvlm-side": {os.SCHED_OTHER}, "pocketvlm-helper": {os.SCHED_IDLE}}
    assert answer.text == cold(iota_bundle, noise(4))
    assert any(held for _, held in rests), "tokens go out behind the rest, where the reader is not behind itself"
    told = len(rests)
    vlm.chat(asked(noise(7)), max_tokens=8)
    assert len(rests) == told, "only while it is wanted"


@idle
def test_spare_time_that_never_comes(vlm: VLM, iota_bundle: Path) -> None:
    """Where others have all cores, who encodes the rest does that tile, too, and asks for no more help."""
    helped: list[bool] = []

    def begin() -> None:
        if threading.current_thread().name == "pocketvlm-helper":
            helped.append(True)
            end = time.monotonic() + 20
            while not told_to_stop(encoder_of(vlm)):
                assert time.monotonic() < end
                time.sleep(0.001)

    answer, runs = seen_beside_an_answer(vlm, noise(5), begin)
    assert helped == [True]
    assert len(runs) == 6, "five tiles, one of them twice"
    assert answer.text == cold(iota_bundle, noise(5))


@idle
def test_who_leaves_while_helped(vlm: VLM, iota_bundle: Path) -> None:
    both, leave = threading.Barrier(2, timeout=20), threading.Event()
    turns = itertools.count()

    def begin() -> None:
        if 1 <= next(turns) <= 2:
            both.wait()
            assert leave.wait(20)

    request, cancellation = ChatRequest.parse(asked(noise(6))), CancellationToken()
    with beside_an_answer(vlm) as go_on, watched(vlm, begin) as runs, ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: list(vlm.run(request, cancellation=cancellation)))
        while len(runs) < 3:
            go_on()
        cancellation.stop()
        assert isinstance(other.exception(30), GenerationCancelledError)
        leave.set()
        while vlm.statistics().encoding:
            go_on()
    assert len(runs) == 3
    assert vlm.chat(asked(noise(6)), max_tokens=8).text == cold(iota_bundle, noise(6))


def test_tiles_that_are_alike_are_encoded_once(vlm: VLM) -> None:
    with watched(vlm) as runs:
        vlm.chat(asked(Image.new("RGB", (2 * TILE, 2 * TILE), "white")), max_tokens=1)
    assert len(runs) == 1
