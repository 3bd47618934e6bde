"""From the engine's events to chunks, and from chunks to a completion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pocketvlm import ChatCompletionChunk, EngineInfo, ImageTimings
from pocketvlm.chat.completion import CompletionBuilder, fold, joined
from pocketvlm.engine.interface import Finished, PrefillDone, Token, TokenScore
from pocketvlm.regions.notations import notation_named
from pocketvlm.structured.compile import CompiledRequest
from pocketvlm.structured.tool_call_format import HERMES

INFO = EngineInfo("iota", None, "", "", {}, frozenset(), None, False, None, 512, "fp_1")
PREFILL = PrefillDone(prompt_tokens=20, cached_tokens=5, images=(), prefill_ms=30.0, queue_ms=2.0)
CALL = b'<tool_call>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_call>'


def compiled(**changes: Any) -> CompiledRequest:
    plain = CompiledRequest((), None, _call_format=None, _thinks=False, _thinking=False, _stops=())
    return replace(plain, **{f"_{name}": value for name, value in changes.items()})


def chunks(builder: CompletionBuilder, *choices: tuple[list[Token], Finished]) -> Iterator[ChatCompletionChunk]:
    for tokens, finished in choices:
        builder.begin_choice()
        for event in (PREFILL, *tokens, finished):
            yield from builder.add(event)
            if builder.stopped:
                break
        yield from builder.end_choice()
    yield builder.end()


def tokens(*pieces: bytes) -> list[Token]:
    """One every 10 ms."""
    return [Token(number, piece, ms=10.0 * number) for number, piece in enumerate(pieces)]


def test_two_choices_and_their_counters() -> None:
    builder = CompletionBuilder(compiled(), INFO, choices=2, queue_ms=7.0)
    first = [Token(1, b"a"), Token(2, b"b", drafted=2, ms=10.0), Token(3, b"c", accepted=True, ms=10.0)]
    all_chunks = list(chunks(builder, (first, Finished("stop")), (tokens(b"x", b"y"), Finished("length"))))
    answer = fold(all_chunks)
    assert [choice.message.content for choice in answer.choices] == ["abc", "xy"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (20, 5)
    assert answer.usage.prompt_tokens_details.cached_tokens == 5
    timings = answer.timings
    assert (timings.queue_ms, timings.prefill_ms, timings.decode_ms) == (7.0 + 2 * 2.0, 60.0, 20.0)
    assert (timings.drafted_tokens, timings.accepted_tokens) == (2, 1)
    assert timings.prefill_tokens_per_second == pytest.approx(1000 * 2 * 15 / 60)
    assert timings.decode_tokens_per_second == pytest.approx(1000 * 3 / 20)  # but the first token of each choice
    finishing = [chunk for chunk in all_chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert [chunk.timings is not None for chunk in finishing] == [False, True]
    assert len({chunk.id for chunk in all_chunks}) == 1


def test_several_runs_are_one_answer() -> None:
    runs = [
        (([Token(1, b"a"), Token(2, b"b", ms=10.0)], Finished("stop")), (tokens(b"c"), Finished("length"))),
        ((tokens(b"d", b"e", b"f"), Finished("stop")),),
    ]
    alone = [fold(chunks(CompletionBuilder(compiled(), INFO, choices=len(run), queue_ms=7.0), *run)) for run in runs]
    builders = [CompletionBuilder(compiled(), INFO, choices=len(run), queue_ms=7.0) for run in runs]
    pieces = list(joined(chunks(builder, *run) for builder, run in zip(builders, runs, strict=True)))
    assert len({chunk.id for chunk in pieces}) == 1
    assert [bool(chunk.choices) for chunk in pieces] == [True] * (len(pieces) - 1) + [False]
    answer = fold(pieces)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["ab", "c", "def"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (40, 6)
    assert answer.usage.total_tokens == 46
    assert answer.usage.prompt_tokens_details.cached_tokens == 10
    timings = answer.timings
    assert timings.prefill_ms == sum(one.timings.prefill_ms for one in alone)
    assert timings.decode_ms == 30.0
    assert timings.decode_tokens_per_second == pytest.approx(1000 * 3 / 30)
    assert timings.prefill_tokens_per_second == pytest.approx(alone[0].timings.prefill_tokens_per_second)
    assert timings.queue_ms == max(one.timings.queue_ms for one in alone)


def test_an_empty_choice_has_no_decode_steps() -> None:
    builder = CompletionBuilder(compiled(), INFO, choices=2)
    *_, last = chunks(builder, ([], Finished("stop")), (tokens(b"x", b"y"), Finished("stop")))
    assert last.timings and last.timings.decode_tokens_per_second == pytest.approx(1000 * 1 / 10)


def test_a_stop_string_ends_the_choice() -> None:
    builder = CompletionBuilder(compiled(stops=("END",)), INFO)
    seen = list(chunks(builder, (tokens(b"one E", b"ND two", b"three"), Finished("length"))))
    assert "".join(chunk.text for chunk in seen) == "one "
    assert seen[-2].choices[0].finish_reason == "stop"
    assert seen[-1].usage and seen[-1].usage.completion_tokens == 2


def test_thinking_and_tool_calls() -> None:
    builder = CompletionBuilder(compiled(thinks=True, call_format=HERMES), INFO)
    answer = fold(chunks(builder, (tokens(b"<think>hm", b"</think>", CALL), Finished("stop"))))
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None and choice.message.reasoning_content == "hm"
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "paint" and call.function.arguments == '{"colour": "red"}'


def test_log_probabilities_come_with_tokens_that_have_no_text_yet() -> None:
    builder = CompletionBuilder(compiled(), INFO)
    score = TokenScore(-0.5, ((1, b"\xc3", -0.5),))
    seen = list(chunks(builder, ([Token(1, b"\xc3", score), Token(2, b"\xa9", score)], Finished("stop"))))
    scored = [chunk.choices[0] for chunk in seen if chunk.choices and chunk.choices[0].logprobs]
    assert [choice.delta.content for choice in scored] == ["", "é"]
    assert scored[0].logprobs and scored[0].logprobs.content[0].bytes == [0xC3]


# ---- regions

CONTROLS = {"<ref>": 7, "</ref>": 8, "<box>": 9, "</box>": 10, "<other>": 11}
SEEN = ImageTimings(
    original_size=(900, 300),
    used_size=(336, 336),
    tiles=1,
    tokens=1,
    shrunk=True,
    encoded=0,
    cache="none",
    read_ms=0.0,
    preprocess_ms=0.0,
    encode_ms=0.0,
    view=(300.0, 0.0, 300.0, 300.0),
)


def answered(text: str, images: tuple[ImageTimings, ...] = (SEEN,), **options: Any) -> Any:
    """The completion of an answer whose tokens are the control tokens, and words."""
    info = replace(INFO, control_tokens=CONTROLS)
    builder = CompletionBuilder(compiled(), info, notation=notation_named("internvl"), **options)
    builder.begin_choice()
    events: list[Any] = [replace(PREFILL, images=images)]
    for piece in re.findall(r"</?\w+>|[^<]+", text):
        events.append(Token(CONTROLS.get(piece, 99), b"" if piece in CONTROLS else piece.encode()))
    received = [chunk for event in (*events, Finished("stop")) for chunk in builder.add(event)]
    return fold([*received, *builder.end_choice(), builder.end()])


def test_control_tokens_of_a_notation_are_read_but_not_shown() -> None:
    text = "A <ref>red dog</ref><box>[[0, 0, 500, 500]]</box><other> and <ref>é</ref><box>[[250, 250, 750, 750]]</box>."
    answer = answered(text)
    assert answer.text == "A red dog[[0, 0, 500, 500]] and é[[250, 250, 750, 750]]."
    assert [region.label for region in answer.regions] == ["red dog", "é"]
    named = [answer.text[slice(*region.span)] for region in answer.regions]
    assert named == ["red dog[[0, 0, 500, 500]", "é[[250, 250, 750, 750]"]
    with_controls = answered(text, control_tokens=True)
    assert with_controls.text == text
    assert [region.box for region in with_controls.regions] == [region.box for region in answer.regions]
    named = [with_controls.text[slice(*region.span)] for region in with_controls.regions]
    assert named == ["<ref>red dog</ref><box>[[0, 0, 500, 500]", "<ref>é</ref><box>[[250, 250, 750, 750]"]


def test_what_was_cut_off_is_noted() -> None:
    note = "iota sees only the middle 300x300 pixels of the picture, which has 900x300; what is cut off is in no region"
    inside, edge = "<box>[[100, 0, 500, 500]]</box>", "<box>[[0, 0, 500, 500]]</box>"
    assert answered(inside).notes is None and answered(inside).regions[0].cut_off is None
    assert answered(edge).notes == [note] and answered(edge).regions[0].cut_off
    assert answered("Nothing.", locates=True).notes == [note]
    whole = SEEN.model_copy(update={"view": None})
    assert answered(edge, (whole,), locates=True).notes is None
    [second] = answered(edge, (SEEN, SEEN), locates=True).notes[1:]
    assert "of picture 2" in second


def test_without_pictures_there_are_no_regions() -> None:
    answer = answered("<box>[[0, 0, 500, 500]]</box>", ())
    assert answer.regions == [] and answer.text == "[[0, 0, 500, 500]]"
