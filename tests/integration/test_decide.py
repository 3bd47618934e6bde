"""Decisions: the probability of each choice is that of the whole answer, whatever it shares an evaluation with."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybrid
from engine_seam import last_position, local, run_between_steps, sequences_in
from integration.asking import asked, disc, settle
from pocketvlm import (
    VLM,
    CancellationToken,
    ContextLengthError,
    EngineError,
    GenerationCancelledError,
    RequestError,
    UnsupportedError,
)
from pocketvlm.decisions.choices import YES_NO
from pocketvlm.engine import in_process
from pocketvlm.vision.prompt_units import following_tokens
from pocketvlm_converters.samples.forward import Loaded, answers, context_for
from pocketvlm_converters.samples.sets import Sample

QUESTION = "What is in the picture?"
# One begins like another and is another's whole beginning; one takes more rows than an evaluation of branches has.
CHOICES = [
    "A circle",
    "A circle and a star",
    "a red circle",
    "No",
    "No, there is no circle",
    "Yes",
    "two big blue stars and a very small green triangle above the yellow square, " * 2 + "and a cross",
]
MANY = [f"{size} {colour} {shape}" for size in ("big", "small") for colour in ("red", "blue") for shape in (
    "circle", "square", "triangle", "star", "cross"
)]  # fmt: skip
PICTURE = disc("red", 5, (120, 90))


def by_brute_force(model: Path, mmproj: Path, texts: Sequence[str]) -> list[float]:
    """The logarithm of the probability of each answer, with its end, alone in a context that holds nothing else."""
    with Loaded(model, mmproj) as loaded:
        sample = [Sample((np.asarray(PICTURE),), QUESTION, text) for text in texts]
        exchanges = [loaded.exchange(one) for one in sample]
        ends = loaded.model.ends
        scores = []
        for exchange in exchanges:
            total = 0.0
            with context_for(loaded.model, [exchange]) as context:
                for tokens, logits in answers(context, exchange):
                    rows = logits.astype(np.float64)
                    rows -= rows.max(axis=1, keepdims=True)
                    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
                    for token, row in zip(tokens, rows, strict=True):
                        total += float(np.log(np.exp(row[ends]).sum()) if token in ends else row[token])
                        if token in ends:
                            break
            scores.append(total)
        return scores


@pytest.fixture(scope="module", params=["attention", "hybrid", "windowed hybrid"])
def model(request: pytest.FixtureRequest, iota_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = iota_onnx / "model-F32.gguf"
    if request.param == "attention":
        return plain
    path = tmp_path_factory.mktemp("model") / "hybrid.gguf"
    return hybrid.save(plain, path, window=32 if request.param.startswith("windowed") else 0)


@pytest.fixture(scope="module")
def mmproj(iota_onnx: Path) -> Path:
    (path,) = iota_onnx.glob("mmproj-*.gguf")
    return path


@pytest.fixture(scope="module")
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, context_size=1024, threads=1, exact=True) as loaded:
        yield loaded


def test_each_choice_as_alone(model: Path, mmproj: Path) -> None:
    texts = [*CHOICES, *MANY]
    expected = by_brute_force(model, mmproj, texts)
    options: dict[str, Any] = {"model": model, "mmproj": mmproj, "context_size": 1024, "threads": 1}
    with VLM.load(**options, exact=True, parallel=2) as vlm:
        decision = vlm.decide(asked(QUESTION, PICTURE), texts)
        again = vlm.decide(asked(QUESTION, PICTURE), texts[::-1])
    assert [*decision.logprobs.values()] == pytest.approx(expected, abs=1e-3)
    assert again.logprobs == pytest.approx(decision.logprobs, abs=1e-3)
    weights = [math.exp(score - max(expected)) for score in expected]
    assert [*decision.probabilities.values()] == pytest.approx([w / sum(weights) for w in weights], abs=1e-3)
    assert math.isclose(math.fsum(decision.probabilities.values()), 1)
    with VLM.load(**options) as vlm:  # where flash attention and f16 round
        fast = vlm.decide(asked(QUESTION, PICTURE), texts)
    # The text of fifty tokens adds fifty differences up.
    assert [*fast.logprobs.values()] == pytest.approx(expected, abs=0.15)


def test_while_others_are_answered(model: Path, mmproj: Path) -> None:
    """Decisions share steps and cells with streams, and leave nothing behind."""
    with VLM.load(
        model=model, mmproj=mmproj, exact=True, context_size=1024, threads=2, parallel=3, speculate="off"
    ) as vlm:
        questions = [asked(QUESTION, disc(colour, 3)) for colour in ("red", "blue", "green", "yellow")]
        told = asked("Describe the picture.", PICTURE)
        expected = [vlm.decide(question, CHOICES).logprobs for question in questions]
        answer = vlm.chat(told, max_tokens=60, ignore_eos=True).text

        def decide(number: int) -> dict[str, float]:
            return vlm.decide(questions[number % 4], CHOICES).logprobs

        with ThreadPoolExecutor(6) as pool:
            chats = [pool.submit(vlm.chat, told, max_tokens=60, ignore_eos=True) for _ in range(3)]
            decided = list(pool.map(decide, range(12)))
        assert [chat.result().text for chat in chats] == [answer] * 3
        for number, logprobs in enumerate(decided):
            assert logprobs == pytest.approx(expected[number % 4], abs=1e-3)
        settle(vlm)

        def look(pool: Any) -> None:
            for sequence in sequences_in(pool):
                assert last_position(pool, sequence) == sequence.content.position - 1
            context = pool._context
            for branch in context.branches:
                assert context._lib.llama_memory_seq_pos_max(context._memory, branch) == -1

        run_between_steps(vlm, look)


def test_a_second_question_knows_the_picture(vlm: VLM) -> None:
    vlm.decide(asked("Is there a circle?", PICTURE), yes_no=True)
    decision = vlm.decide(asked("Is there a star?", PICTURE), yes_no=True)
    tokens = decision.usage
    assert tokens.prompt_tokens_details.cached_tokens > tokens.prompt_tokens_details.image_tokens
    assert not any(image.encoded for image in decision.timings.images)


def test_yes_is_all_of_its_forms(vlm: VLM) -> None:
    question = asked("Is there a red circle?", PICTURE)
    decision = vlm.decide(question, yes_no=True)
    apart = vlm.decide(question, YES_NO.flat).logprobs
    for name, texts in zip(YES_NO.names, YES_NO.texts, strict=True):
        total = math.log(sum(math.exp(apart[text]) for text in texts))
        assert decision.logprobs[name] == pytest.approx(total, abs=1e-4)
    assert decision.choice == "yes"
    assert decision.probability == decision.probabilities["yes"]
    assert decision.coverage == pytest.approx(sum(map(math.exp, apart.values())))


def test_a_scale_has_an_expectation(vlm: VLM) -> None:
    decision = vlm.decide(asked("How many circles are there?", PICTURE), scale=(0, 9))
    assert decision.expectation == pytest.approx(sum(int(n) * p for n, p in decision.probabilities.items()))
    assert list(decision.probabilities) == list("0123456789")


def test_special_tokens_in_a_choice_are_text(vlm: VLM) -> None:
    end = next(iter(sorted(vlm.info.end_tokens)))
    decision = vlm.decide(asked("Is there a red circle?", PICTURE), ["Yes", f"Yes{end}"])
    assert decision.logprobs[f"Yes{end}"] < decision.logprobs["Yes"] - 10
    assert decision.usage.completion_tokens > 2  # the letters of the mark


def test_a_begun_answer_goes_on(vlm: VLM) -> None:
    question = asked("Is there a red circle?", PICTURE)
    begun = [*question, {"role": "assistant", "content": "A red"}]
    decision = vlm.decide(begun, ["circle", "square"])
    whole = vlm.decide(question, ["A red circle", "A red square"])
    ratios = [
        logprobs[0] - logprobs[1] for logprobs in ([*d.logprobs.values()] for d in (decision, whole))
    ]  # what they have in common is in neither
    assert ratios[0] == pytest.approx(ratios[1], abs=1e-3)


def test_a_context_without_room(iota_bundle: Path) -> None:
    with VLM.load(iota_bundle, context_size=256, threads=1) as vlm:
        text = "word " * 110
        tokens = vlm.count_tokens(asked(text)).total
        assert tokens < vlm.info.context_size
        with pytest.raises(ContextLengthError) as error:
            vlm.decide(asked(text), [f"a {'big ' * (vlm.info.context_size - tokens)}circle", "no"])
        assert error.value.param == "choices"
        assert vlm.decide(asked(text), yes_no=True).usage.prompt_tokens == tokens


def test_cancelled(vlm: VLM) -> None:
    token = CancellationToken()
    token.stop()
    with pytest.raises(GenerationCancelledError):
        vlm.decide(asked(QUESTION, PICTURE), MANY, cancellation=token)
    late = CancellationToken()
    thread = threading.Timer(0.02, late.stop)
    thread.start()
    with pytest.raises(GenerationCancelledError):
        while True:
            vlm.decide(asked(QUESTION, PICTURE), MANY, cancellation=late)
    thread.join()
    settle(vlm)
    assert vlm.decide(asked("Is there a red circle?", PICTURE), yes_no=True).choice == "yes"


def test_another_request_is_cancelled_while_choices_are_scored(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its abort may come late and end the evaluation of branches, which is then done again."""
    expected = vlm.decide(asked(QUESTION, PICTURE), MANY)
    context = local(vlm)._context
    decode, evaluations = context.decode, []

    def aborted_once(batch: Any) -> None:
        evaluations.append(batch.count)
        if len(evaluations) == 2:  # the first is the prompt's
            context.abort()
        decode(batch)

    monkeypatch.setattr(context, "decode", aborted_once)
    decision = vlm.decide(asked(QUESTION, PICTURE), MANY)
    assert evaluations[1] == evaluations[2]
    assert decision.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert decision.usage.completion_tokens == expected.usage.completion_tokens


@pytest.mark.parametrize("failing", [0, 1])
def test_values_that_are_not_numbers(vlm: VLM, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    logits, rows = local(vlm)._context.logits, []

    def broken(index: int, *, copy: bool = True) -> Any:
        rows.append(index)
        row = logits(index, copy=copy)
        return row * np.float32("nan") if len(rows) == failing + 1 else row

    with monkeypatch.context() as patch, pytest.raises(EngineError, match="not numbers"):
        patch.setattr(local(vlm)._context, "logits", broken)
        vlm.decide(asked(QUESTION), yes_no=True)
    assert len(rows) == failing + 1
    vlm.decide(asked(QUESTION), yes_no=True)


def test_in_a_process_of_its_own(iota_bundle: Path, vlm: VLM) -> None:
    expected = vlm.decide(asked(QUESTION, PICTURE), CHOICES)
    with VLM.load(iota_bundle, context_size=1024, threads=1, exact=True, supervised=True) as apart:
        decision = apart.decide(asked(QUESTION, PICTURE), CHOICES)
    assert decision.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({}, "choices"),
        ({"choices": []}, "choices"),
        ({"choices": ["yes"]}, "choices"),
        ({"choices": "yes"}, "choices"),
        ({"choices": ["yes", "no", " yes"]}, "choices.2"),
        ({"choices": ["yes", " "]}, "choices.1"),
        ({"choices": ["yes", 3]}, "choices.1"),
        ({"choices": ["yes", "n\ud800"]}, "choices.1"),
        ({"choices": ["yes", "x" * 2001]}, "choices.1"),
        ({"choices": [str(number) for number in range(256)]}, "choices"),
        ({"scale": (10, 0)}, "scale"),
        ({"scale": (1, 1)}, "scale"),
        ({"scale": (0, 1000)}, "scale"),
        ({"scale": (0, 1.5)}, "scale"),
        ({"yes_no": True, "choices": ["a", "b"]}, "yes_no"),
        ({"yes_no": True, "max_tokens": 5}, "max_tokens"),
        ({"yes_no": True, "tools": []}, "tools"),
    ],
)
def test_what_is_refused(vlm: VLM, arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        vlm.decide(asked(QUESTION), **arguments)
    assert error.value.param == param


@pytest.mark.parametrize(("written", "param"), [((), "choices.0"), ((0,), "choices.1")])
def test_what_the_vocabulary_lacks(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, written: tuple[int, ...], param: str
) -> None:
    """The small model has all bytes, so its tokenizer plays one that writes only some of the choices."""
    choices = ["cat", "dog", "cow"]
    texts: list[str] = []

    def tokens(model: Any, before: Any, text: str) -> list[int]:
        texts.append(text)
        return following_tokens(model, before, text) if len(texts) - 1 in written else []

    with monkeypatch.context() as patch, pytest.raises(RequestError, match="its vocabulary lacks it") as error:
        patch.setattr(in_process, "following_tokens", tokens)
        vlm.decide(asked(QUESTION), choices)
    assert error.value.param == param
    assert vlm.decide(asked(QUESTION), choices).probabilities.keys() == {*choices}


def test_without_an_end(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(local(vlm)._model.__dict__, "ends", [])
    with pytest.raises(UnsupportedError, match="ends an answer"):
        vlm.decide(asked(QUESTION), yes_no=True)


def test_a_stream_goes_on_while_choices_are_scored(iota_bundle: Path) -> None:
    with (
        VLM.load(iota_bundle, context_size=1024, threads=2, parallel=2, speculate="off") as vlm,
        closing(vlm.stream(asked("Describe the picture."), max_tokens=200, ignore_eos=True)) as chunks,
    ):
        next(chunks)
        for _ in range(3):
            vlm.decide(asked(QUESTION, PICTURE), MANY)
            assert next(chunks) is not None
