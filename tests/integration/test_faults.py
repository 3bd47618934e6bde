"""What must not happen and does: the engine of this process goes on after it, and nobody waits for ever."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from engine_seam import local, run_between_steps, sequence_pool, sequences_in, streams_lock, when_submitted
from integration.asking import asked, generation, settle
from pocketvlm import VLM
from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import Generation, Token
from pocketvlm.engine.kv_cache.prefix_cache import CachedPrefix
from pocketvlm.errors import EngineClosedError, EngineError, RequestError
from pocketvlm.native.sampler import Sampling
from pocketvlm.templates.prompt import TextSpan

QUESTION = "Describe the picture."
PATIENCE = 30  # seconds


@pytest.fixture
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, parallel=2, context_size=2048, threads=2, vision="onnx") as loaded:
        yield loaded


@pytest.fixture
def engine(vlm: VLM) -> InProcessEngine:
    found: InProcessEngine = local(vlm)
    return found


def in_time(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises; a failure where it does not end."""
    found: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        try:
            found.put((work(), None))
        except Exception as error:  # raised again by the thread that waits
            found.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    value, error = found.get(timeout=PATIENCE)
    if error is not None:
        raise error
    return value


def tokens(engine: InProcessEngine, request: Generation) -> list[int]:
    return [event.id for event in engine.generate(request) if isinstance(event, Token)]


def test_after_a_fault_the_cache_is_not_trusted(
    vlm: VLM, engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was evaluated when it came is in the cells, and nowhere else."""
    request = generation(vlm, asked("What is a circle?"), max_tokens=8)
    expected = tokens(engine, request)
    run_between_steps(vlm, lambda lanes: [lanes.clear(lane) for lane in sequences_in(lanes)])

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(CachedPrefix, "add", fail)
        with ThreadPoolExecutor(2) as pool:  # in each lane
            for ended in [pool.submit(tokens, engine, request) for _ in range(2)]:
                with pytest.raises(EngineError, match="ZeroDivisionError"):
                    ended.result(timeout=PATIENCE)
    settle(engine)
    assert [tokens(engine, request) for _ in range(2)] == [expected] * 2


def test_a_fault_while_a_request_leaves_keeps_no_lane(
    vlm: VLM, engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = generation(vlm, asked("What is a circle?"), max_tokens=8)
    expected = tokens(engine, request)
    lanes = sequence_pool(vlm)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    for _ in range(2):
        with monkeypatch.context() as broken:
            broken.setattr(lanes, "release", fail)
            tokens(engine, request)
            in_time(lambda: run_between_steps(vlm, lambda _: None))
    assert in_time(lambda: tokens(engine, request)) == expected


def test_a_stream_that_the_garbage_collector_ends(vlm: VLM, engine: InProcessEngine) -> None:
    """It comes in any line of any thread, also where that thread is about to change what streams there are."""
    abandon(engine.generate(generation(vlm, asked(QUESTION), max_tokens=1000, endless=True)))

    def collect() -> None:
        with streams_lock(vlm):
            gc.collect()

    in_time(collect)
    settle(engine)


def abandon(stream: Iterator[Any]) -> None:
    next(stream)
    cycle: list[Any] = [stream]
    cycle.append(cycle)


def test_an_empty_prompt(engine: InProcessEngine) -> None:
    for _ in range(3):
        with pytest.raises(RequestError, match="empty"):
            tokens(engine, Generation((TextSpan("", special=False),), Sampling(), max_tokens=1))


def test_submitting_to_an_engine_that_closes(
    vlm: VLM, engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted is told of the end, whenever that comes."""
    closer = threading.Thread(target=engine.close)

    def close() -> None:
        if closer.ident is None:
            closer.start()
            closer.join(0.2)

    when_submitted(monkeypatch, vlm, close)
    with pytest.raises(EngineClosedError):
        in_time(lambda: tokens(engine, generation(vlm, asked(QUESTION), max_tokens=1)))
    closer.join()


def test_a_system_that_gives_no_thread(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are encoded one after the other then."""
    picture = np.random.default_rng(1).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    expected = vlm.chat(asked(QUESTION, picture), max_tokens=8).text
    vlm.clear_picture_cache()
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if threading.current_thread().name == "pocketvlm-background":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    picture[0, 0] ^= 1
    answer = in_time(lambda: vlm.chat(asked(QUESTION, picture), max_tokens=8))
    assert answer.timings.images[0].encoded == 5
    assert answer.text == expected
