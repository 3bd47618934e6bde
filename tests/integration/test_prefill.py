"""Prompts evaluated on the side while answers run: the same answers, and nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.asking import asked, disc, generation, settle
from pocketvlm import VLM
from pocketvlm.engine.engine import Token
from pocketvlm.engine.prefill import Prefill, Side
from pocketvlm.errors import EngineError

LONG = "word " * 150


@contextmanager
def somebody_reads(vlm: VLM) -> Iterator[None]:
    """A stream that goes on all the time."""
    engine: Any = vlm._engine
    with closing(engine.generate(generation(vlm, asked("Describe the picture."), 900, endless=True))) as stream:
        while not isinstance(next(stream), Token):
            pass
        yield
    settle(engine)


@pytest.fixture(scope="module")
def exact(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, exact=True, parallel=3, context_size=1024, threads=2) as loaded:
        yield loaded


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """(position, units, whether it brought what was known) of each chunk that was evaluated on the side."""
    found: list[tuple[int, int, bool]] = []
    original = Side.evaluate

    def evaluate(self: Side, chunk: Any) -> Any:
        cells = original(self, chunk)
        found.append((chunk.position, len(chunk.units), chunk.enters is not None))
        return cells

    monkeypatch.setattr(Side, "evaluate", evaluate)
    return found


def idle(vlm: VLM) -> Prefill:
    engine: Any = vlm._engine
    settle(engine)
    prefill: Prefill = engine._scheduler._prefill
    until = time.monotonic() + 10
    while prefill._side._context is not None:
        assert time.monotonic() < until, "the side's context stays open"
        time.sleep(0.005)
    assert prefill._room == engine.info.context_size
    assert not prefill._chunks and not prefill._side._inside
    return prefill


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_same_answer_as_alone(
    iota_bundle: Path, exact: VLM, chunks: list[tuple[int, int, bool]], pictures: int
) -> None:
    seen = [disc("red", 5000 + 10 * pictures + i, (200, 150)) for i in range(pictures)]
    question = asked(LONG + "What colour is the circle?", *seen)
    options: dict[str, Any] = {"max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    with VLM.load(iota_bundle, exact=True) as alone:
        expected = alone.chat(question, **options)
    with somebody_reads(exact):
        found = exact.chat(question, **options)
    assert sum(units for _, units, _ in chunks) > 150
    assert found.text == expected.text
    assert found.choices[0].logprobs == expected.choices[0].logprobs
    idle(exact)


def test_a_known_beginning_goes_along(iota_bundle: Path, exact: VLM, chunks: list[tuple[int, int, bool]]) -> None:
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
    with VLM.load(iota_bundle, exact=True) as alone:
        assert alone.chat(second).text == beside.text


def test_leaving_at_any_time(exact: VLM, chunks: list[tuple[int, int, bool]]) -> None:
    engine: Any = exact._engine
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


@pytest.mark.parametrize("broken", ["_make", "evaluate"])
def test_where_the_side_fails_the_steps_take_over(exact: VLM, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    calls = []

    def fail(*_: Any) -> Any:
        calls.append(1)
        raise EngineError("no memory")

    monkeypatch.setattr(idle(exact)._side, broken, fail)
    with somebody_reads(exact):
        question = asked(LONG + "What colour is the circle?", disc("yellow", 6300 + len(broken)))
        assert exact.chat(question, max_tokens=4).text
    assert calls == [1]
    idle(exact)
