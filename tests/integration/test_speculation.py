"""Answers that are drafted by what stood before say what they say without: every kind of request, on a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hybrid
from engine_seam import generate, last_position, never_ending, run_between_steps, sequences_in
from integration.asking import asked, disc, generation, settle
from pocketvlm import VLM
from pocketvlm.engine.interface import Event, Finished, Generation, Token
from pocketvlm.errors import RequestError
from pocketvlm.native.grammar import Constraint

COUNT = 60  # tokens of an answer
# A list that a model may go on with in its own way, or repeat.
LIST = "red circle, blue square, red circle, blue square, red circle, blue"
GRAMMAR = r"""%llguidance {}
start: (/(red|blue|green) (circle|square)/ ", ")+"""


@pytest.fixture(scope="module")
def plain(iota_onnx: Path) -> Iterator[VLM]:
    with VLM.load(iota_onnx, vision="gguf", exact=True, threads=1, context_size=1024, speculate="off") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def drafting(iota_onnx: Path) -> Iterator[VLM]:
    with VLM.load(
        iota_onnx, vision="gguf", exact=True, threads=1, context_size=1024, parallel=3, speculate="on"
    ) as loaded:
        yield loaded


def endless(vlm: VLM, text: str = LIST, seed: int = 0, **sampling: Any) -> Generation:
    """A request that goes on to `max_tokens`; with a picture, so that there is something that is no token."""
    request = generation(vlm, asked(text, disc("red", seed)), COUNT, endless=True)
    return replace(request, sampling=replace(request.sampling, **sampling))


def read(vlm: VLM, request: Generation) -> list[Event]:
    return [event for event in generate(vlm, request) if isinstance(event, Token | Finished)]


def bare(event: Event) -> Event:
    """Without how it was drafted and how likely it was."""
    return replace(event, drafted=0, accepted=False, score=None) if isinstance(event, Token) else event


def compare(plain: VLM, drafting: VLM, request: Generation) -> tuple[int, int]:
    """How many tokens were drafted, and how many of them were right."""
    expected, found = read(plain, request), read(drafting, request)
    assert list(map(bare, found)) == list(map(bare, expected))
    tokens = [event for event in found if isinstance(event, Token)]
    for token, other in zip(tokens, expected, strict=False):
        if token.score is not None:
            assert isinstance(other, Token) and other.score is not None
            assert token.score.logprob == pytest.approx(other.score.logprob, abs=1e-3)
            for mine, theirs in zip(token.score.top, other.score.top, strict=True):
                assert mine[2] == pytest.approx(theirs[2], abs=1e-3)
    return sum(token.drafted for token in tokens), sum(token.accepted for token in tokens)


def whole(vlm: VLM) -> None:
    """The native cache holds what the lanes say, no more."""
    settle(vlm)

    def look(lanes: Any) -> None:
        for lane in sequences_in(lanes):
            assert last_position(lanes, lane) == lane.content.position - 1

    run_between_steps(vlm, look)


CONSTRAINT = Constraint(GRAMMAR, "response_format")
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "temperature": ({"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 7}, {}),
    "wild": ({"temperature": 2.0, "seed": 3}, {}),
    "penalties": ({"repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1}, {}),
    "probabilities": ({}, {"top_logprobs": 5}),
    "grammar": ({}, {"constraint": CONSTRAINT}),
    "grammar with temperature": ({"temperature": 1.5, "seed": 2}, {"constraint": CONSTRAINT, "top_logprobs": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_says_the_same(plain: VLM, drafting: VLM, kind: str) -> None:
    sampling, fields = KINDS[kind]
    drafted, accepted = compare(plain, drafting, replace(endless(plain, **sampling), **fields))
    assert drafted > 0
    assert kind != "greedy" or accepted > 0
    assert kind != "wild" or accepted < drafted
    whole(drafting)


@pytest.mark.parametrize("text", ["word " * 40, "Describe the picture.", "red blue green " * 10, "a " * 3 + LIST * 3])
def test_says_the_same_after_other_texts(plain: VLM, drafting: VLM, text: str) -> None:
    for seed in range(2):
        compare(plain, drafting, endless(plain, text, seed))
    whole(drafting)


def test_ends_where_it_should(plain: VLM, drafting: VLM) -> None:
    """At every number of tokens, be it within a draft; at the model's own end; where a grammar ends."""
    for limit in range(1, 16):
        request = replace(endless(plain), max_tokens=limit)
        compare(plain, drafting, request)
        whole(drafting)
    for seed in range(4):
        request = generation(plain, asked("Describe the picture.", disc("blue", seed)))
        found = read(drafting, request)
        assert list(map(bare, found)) == list(map(bare, read(plain, request)))
        assert found[-1] == Finished("stop")
    short = replace(
        endless(plain), constraint=Constraint('%llguidance {}\nstart: ("red circle, "){7}', "response_format")
    )
    compare(plain, drafting, short)
    assert read(drafting, short)[-1] == Finished("stop")
    whole(drafting)


def test_stops_within_a_draft(plain: VLM, drafting: VLM) -> None:
    asking = asked(LIST, disc("red"))
    options = {"max_tokens": COUNT, "logit_bias": never_ending(plain)}
    text = plain.chat(asking, **options).text
    assert len(text) > 60
    for start in range(0, 60, 13):
        stop = text[start : start + 5]
        one, other = (vlm.chat(asking, **options, stop=[stop]) for vlm in (plain, drafting))
        assert other.text == one.text != text
        assert other.usage.completion_tokens == one.usage.completion_tokens
        whole(drafting)


def test_together_as_alone(plain: VLM, drafting: VLM) -> None:
    requests = [endless(plain, LIST if seed % 2 else "word " * 30, seed) for seed in range(9)]
    expected = [list(map(bare, read(plain, request))) for request in requests]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda request: read(drafting, request), requests))
    assert [list(map(bare, answer)) for answer in found] == expected
    assert any(isinstance(event, Token) and event.accepted for answer in found for event in answer)
    whole(drafting)


def test_goes_on_after_it_was_cancelled(plain: VLM, drafting: VLM) -> None:
    """Nothing of a draft stays in the cache that the next request finds."""
    expected = list(map(bare, read(plain, endless(plain))))
    for count in (1, 2, 7, 20, 41):
        with closing(generate(drafting, endless(drafting))) as stream:
            for event in stream:
                count -= isinstance(event, Token)
                if count == 0:
                    break
        whole(drafting)
        assert list(map(bare, read(drafting, endless(drafting)))) == expected


def test_a_second_turn_finds_the_answer_in_the_cache(plain: VLM, drafting: VLM) -> None:
    def turns(vlm: VLM) -> tuple[str, str, int]:
        messages = asked(LIST, disc("red", 77))
        first = vlm.chat(messages, max_tokens=COUNT).text
        messages += [{"role": "assistant", "content": first}, *asked("And now?")]
        second = vlm.chat(messages, max_tokens=COUNT)
        return first, second.text, second.usage.prompt_tokens_details.cached_tokens

    assert turns(drafting) == turns(plain)


def test_is_counted(drafting: VLM) -> None:
    before = drafting.statistics()
    answer = drafting.chat(asked(LIST, disc("red")), max_tokens=COUNT, ignore_eos=True)
    settle(drafting)
    after = drafting.statistics()
    timings = answer.timings
    assert 0 < timings.accepted_tokens <= timings.drafted_tokens
    assert after.drafted_tokens - before.drafted_tokens == timings.drafted_tokens
    assert after.accepted_tokens - before.accepted_tokens == timings.accepted_tokens


def test_off_and_exact_draft_nothing_and_auto_does(plain: VLM, iota_onnx: Path) -> None:
    assert plain.statistics().drafted_tokens == 0
    for exact in (False, True):
        with VLM.load(iota_onnx, vision="gguf", exact=exact, threads=1, context_size=1024) as auto:
            for _ in range(4):
                read(auto, endless(plain))
            settle(auto)
            assert (auto.statistics().drafted_tokens > 0) != exact


def test_a_mode_that_is_none(iota_bundle: Path) -> None:
    with pytest.raises(RequestError, match=r"speculate: invalid value .sometimes."):
        VLM.load(iota_bundle, speculate="sometimes")  # type: ignore[arg-type]


def test_never_where_the_cache_cannot_be_cut_back(iota_onnx: Path, tmp_path: Path) -> None:
    model = hybrid.save(iota_onnx / "model-F32.gguf", tmp_path / "hybrid.gguf")
    with VLM.load(model=model, context_size=512, threads=1, speculate="on") as vlm:
        vlm.chat([{"role": "user", "content": LIST}], max_tokens=COUNT, ignore_eos=True)
        settle(vlm)
        assert vlm.statistics().drafted_tokens == 0
