"""Prompts evaluated in the background while answers run: the same answers, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from engine_seam import MAKE_CONTEXT, generate, is_closing, local, prefill_context, prefill_is_empty, prefill_is_open
from integration.asking import asked, disc, generation, settle
from pocketvlm import VLM, ChatCompletion
from pocketvlm.engine.interface import PrefillDone, Token
from pocketvlm.engine.scheduling.background_prefill import PrefillContext
from pocketvlm.engine.scheduling.token_sampler import TokenSampler
from pocketvlm.errors import EngineClosedError, EngineError
from waiting import wait_until

LONG = "word " * 150


@contextmanager
def somebody_reads(vlm: VLM) -> Iterator[None]:
    """A stream that goes on all the time."""
    with closing(generate(vlm, generation(vlm, asked("Describe the picture."), 900, endless=True))) as stream:
        while not isinstance(next(stream), Token):
            pass
        yield
    settle(vlm)


@pytest.fixture(scope="module")
def exact(iota_onnx: Path) -> Iterator[VLM]:
    # Float32 weights: quantized ones round activations, and a last bit may then become a thousandth.
    with VLM.load(iota_onnx, exact=True, parallel=3, context_size=1024, threads=2) as loaded:
        yield loaded


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """(position, units, whether it brought what was known) of each chunk that was evaluated in the background."""
    found: list[tuple[int, int, bool]] = []
    original = PrefillContext.evaluate

    def evaluate(self: PrefillContext, chunk: Any) -> Any:
        cells = original(self, chunk)
        found.append((chunk.position, len(chunk.units), chunk.prefix is not None))
        return cells

    monkeypatch.setattr(PrefillContext, "evaluate", evaluate)
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each token, whether it was drawn from the prefill context's logits."""
    found: list[bool] = []
    original = TokenSampler.sample

    def sample(self: TokenSampler, context: Any, logits: Any, **details: Any) -> Any:
        found.append(not isinstance(logits, int))
        return original(self, context, logits, **details)

    monkeypatch.setattr(TokenSampler, "sample", sample)
    return found


def idle(vlm: VLM) -> None:
    settle(vlm)
    wait_until(lambda: not prefill_is_open(vlm))
    assert prefill_is_empty(vlm)


def assert_same(found: ChatCompletion, expected: ChatCompletion) -> None:
    """The same tokens, of the same logprobs but for rounding: sums over other numbers of cells."""
    one, two = found.choices[0], expected.choices[0]
    assert (found.text, one.finish_reason) == (expected.text, two.finish_reason)
    assert one.logprobs and two.logprobs
    for a, b in zip(one.logprobs.content, two.logprobs.content, strict=True):
        for c, d in zip([a, *a.top_logprobs], [b, *b.top_logprobs], strict=True):
            assert (c.bytes, c.logprob) == (d.bytes, pytest.approx(d.logprob, abs=1e-4))


SCORED: dict[str, Any] = {"max_tokens": 12, "logprobs": True, "top_logprobs": 2}


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_same_answer_as_alone(
    iota_onnx: Path, exact: VLM, chunks: list[tuple[int, int, bool]], drawn: list[bool], pictures: int
) -> None:
    seen = [disc("red", 5000 + 10 * pictures + i, (200, 150)) for i in range(pictures)]
    question = asked(LONG + "What colour is the circle?", *seen)
    with VLM.load(iota_onnx, exact=True) as alone:
        expected = alone.chat(question, **SCORED)
    drawn.clear()
    with somebody_reads(exact):
        found = exact.chat(question, **SCORED)
    assert sum(units for _, units, _ in chunks) > 150
    assert drawn.count(True) == 1
    assert_same(found, expected)
    idle(exact)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.2, "top_p": 0.9, "top_k": 40, "seed": 3, "logit_bias": {"300": 2.0}},
        {"frequency_penalty": 2.0, "logit_bias": {"300": 12.0}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["red", "big"]}}}},
        {"max_tokens": 1},
    ],
    ids=["drawn", "penalties", "schema", "one token"],
)
def test_its_first_token_is_drawn_as_the_others(
    iota_onnx: Path, exact: VLM, drawn: list[bool], options: dict[str, Any]
) -> None:
    question = asked(f"{next(iter(options))} {LONG} Describe")  # no other knows its beginning
    with VLM.load(iota_onnx, exact=True) as alone:
        expected = alone.chat(question, **SCORED | options)
    drawn.clear()
    with somebody_reads(exact):
        found = exact.chat(question, **SCORED | options)
    assert drawn.count(True) == 1
    assert_same(found, expected)
    idle(exact)


def test_a_known_beginning_goes_along(iota_onnx: Path, exact: VLM, chunks: list[tuple[int, int, bool]]) -> None:
    first = asked("What colour is the circle?", disc("green", 6000, (200, 150)))
    answer = exact.chat(first).text
    idle(exact)
    second = [*first, {"role": "assistant", "content": answer}, *asked(LONG + "Which shape?", disc("blue", 6001))]
    with somebody_reads(exact):
        beside = exact.chat(second)
    assert chunks[0][0] > 0 and chunks[0][2]
    assert [known for _, _, known in chunks].count(True) == 1
    assert [image.cache for image in beside.timings.images] == ["kv", "none"]
    idle(exact)
    with VLM.load(iota_onnx, exact=True) as alone:
        assert alone.chat(second).text == beside.text


def test_leaving_at_any_time(exact: VLM, chunks: list[tuple[int, int, bool]]) -> None:
    engine = local(exact)
    with somebody_reads(exact):
        for number in range(40):
            ask = generation(exact, asked(LONG + str(number), disc("red", 6100 + number, (300, 200))), 3)
            job = engine.submit(ask, lambda _: None)
            time.sleep(0.004 * number)
            engine.withdraw(job)
    assert chunks
    idle(exact)
    for colour in ("red", "blue"):
        assert exact.chat(asked("What colour is the circle?", disc(colour, 6200))).text.lower() == colour


def at_the_last_chunk(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something when a prompt's last chunk is evaluated, and nothing is drawn yet."""
    original = PrefillContext.evaluate

    def evaluate(self: PrefillContext, chunk: Any) -> Any:
        found = original(self, chunk)
        if chunk.last:
            act()
        return found

    monkeypatch.setattr(PrefillContext, "evaluate", evaluate)


def test_leaving_before_the_first_token_is_drawn(
    exact: VLM, monkeypatch: pytest.MonkeyPatch, drawn: list[bool]
) -> None:
    engine = local(exact)
    done, events = threading.Event(), list[Any]()
    jobs: SimpleQueue[Any] = SimpleQueue()

    def leave() -> None:
        engine.withdraw(jobs.get())
        done.set()

    at_the_last_chunk(monkeypatch, leave)
    with somebody_reads(exact):
        for number in range(6):
            done.clear()
            jobs.put(engine.submit(generation(exact, asked(f"{number} {LONG}"), 5), events.append))
            assert done.wait(60)
    idle(exact)
    assert not any(drawn) and not events


def test_closing_before_the_first_token_is_drawn(iota_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closers: list[threading.Thread] = []
    with VLM.load(iota_onnx, parallel=3, context_size=1024, threads=2) as vlm:
        engine = local(vlm)
        events: SimpleQueue[Any] = SimpleQueue()

        def close() -> None:
            closers.append(threading.Thread(target=vlm.close))
            closers[-1].start()
            while not is_closing(vlm):
                time.sleep(0.001)

        at_the_last_chunk(monkeypatch, close)
        with closing(engine.generate(generation(vlm, asked("Describe the picture."), 900, endless=True))) as stream:
            while not isinstance(next(stream), Token):
                pass
            engine.submit(generation(vlm, asked(LONG), 5), events.put)
            with pytest.raises(EngineClosedError):
                list(stream)
        while not isinstance(event := events.get(timeout=60), EngineClosedError):
            assert isinstance(event, PrefillDone | Token)
        [closer] = closers
        closer.join(60)
        assert not closer.is_alive() and events.empty()


@pytest.mark.parametrize("broken", [MAKE_CONTEXT, "evaluate"])
def test_where_it_fails_the_steps_take_over(exact: VLM, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    calls = []

    def fail(*_: Any) -> Any:
        calls.append(1)
        raise EngineError("no memory")

    idle(exact)
    monkeypatch.setattr(prefill_context(exact), broken, fail)
    with somebody_reads(exact):
        question = asked(LONG + "What colour is the circle?", disc("yellow", 6300 + len(broken)))
        assert exact.chat(question, max_tokens=4).text
    assert calls == [1]
    idle(exact)
