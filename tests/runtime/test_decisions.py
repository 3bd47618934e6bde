"""Choices, token trees, probabilities and calibration, without a model."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from pocketvlm import CalibrationError, PocketVLMError, RequestError
from pocketvlm.batch.labelled import read_labelled
from pocketvlm.batch.requests import AskedItem, Defaults, read_batch
from pocketvlm.cli.command_options import given_choices
from pocketvlm.decisions.calibration import (
    Calibration,
    Example,
    expected_calibration_error,
    fit_temperature,
)
from pocketvlm.decisions.choices import YES_NO, scale_of, texts_of
from pocketvlm.decisions.decision import probabilities_of
from pocketvlm.engine.scheduling.token_tree import MAX_BRANCH_ROWS, TokenTree
from pocketvlm.templates.prompt import ChatTemplate
from pocketvlm.templates.turn_end import texts_around_answer

VOCABULARY, ENDS = 12, (10, 11)


def logits_after(path: tuple[int, ...]) -> Any:
    return np.random.default_rng(hash(path) % 2**32).normal(0, 3, VOCABULARY).astype(np.float32)


def score_of(choice: tuple[int, ...]) -> float:
    """The logarithm of the probability of a choice with its end, from the definition."""
    total = 0.0
    for count in range(len(choice) + 1):
        weights = np.exp(logits_after(choice[:count]).astype(np.float64))
        chosen = weights[choice[count]] if count < len(choice) else weights[list(ENDS)].sum()
        total += math.log(chosen / weights.sum())
    return total


@pytest.mark.parametrize("max_branches", [1, 3, 15])
@pytest.mark.parametrize("seed", range(5))
def test_a_tree_scores_each_choice(max_branches: int, seed: int) -> None:
    rng = Random(seed)
    choices = {tuple(rng.randrange(4) for _ in range(rng.randint(1, 6))) for _ in range(30)} | {(5,) * 40}
    texts = [*sorted(choices), ()]
    tree = TokenTree(texts, ENDS, max_branches=max_branches)
    tree.score(tree.root, logits_after(()))
    while tree.waiting:
        branches = tree.waiting.pop(0)
        held: list[tuple[int, ...]] = [()] * branches.count
        assert branches.count <= max_branches
        assert len(branches.nodes) <= MAX_BRANCH_ROWS or branches.count == 1
        for node, on in branches.nodes:
            assert len({held[branch] for branch in on}) == 1  # they have the same tokens before
            assert len(held[on[0]]) == node.depth - 1
            for branch in on:
                held[branch] = (*held[branch], node.token)
            tree.score(node, logits_after(held[on[0]]))
    assert tree.scores[:-1] == pytest.approx([score_of(choice) for choice in texts[:-1]], abs=1e-4)
    assert tree.scores[-1] == -math.inf


def test_common_beginnings_are_evaluated_once() -> None:
    tree = TokenTree([(1,), (1, 2), (1, 2, 3), (1, 4)], ENDS, max_branches=15)
    [branches] = tree.waiting
    assert [(node.token, on) for node, on in branches.nodes] == [(1, (0, 1)), (2, (0,)), (3, (0,)), (4, (1,))]
    assert tree.rows == 4


def test_probabilities_of_choices() -> None:
    assert probabilities_of([math.log(0.2), math.log(0.1), math.log(0.1)]) == pytest.approx([0.5, 0.25, 0.25])
    assert probabilities_of([-1000.0, -1000.0]) == pytest.approx([0.5, 0.5])
    assert probabilities_of([math.log(0.9), math.log(0.1)], 2.0) == pytest.approx([0.75, 0.25])


# ---- calibration


def binary(margin: float, right: int, wrong: int) -> list[Example]:
    return [Example((margin, 0.0), 0)] * right + [Example((margin, 0.0), 1)] * wrong


def test_the_temperature_is_that_of_the_likeliest() -> None:
    """Where all margins are the same, the best probability is the share of right answers."""
    for margin, right, wrong in product((1.0, 4.0), (3, 9), (1, 2)):
        temperature = fit_temperature(binary(margin, right, wrong))
        assert temperature == pytest.approx(margin / math.log(right / wrong), rel=1e-4)
    assert fit_temperature(binary(1.0, 20, 0)) == pytest.approx(0.05, rel=0.01)  # no end to how sure it may be


def test_the_calibration_error() -> None:
    example = Example((math.log(0.8), math.log(0.2)), 0)
    other = Example((math.log(0.8), math.log(0.2)), 1)
    assert expected_calibration_error([(example, 1.0)] * 8 + [(other, 1.0)] * 2) == pytest.approx(0)
    assert expected_calibration_error([(example, 1.0)] * 5 + [(other, 1.0)] * 5) == pytest.approx(0.3)
    sure = Example((0.0, -50.0), 1)
    assert expected_calibration_error([(example, 1.0), (sure, 1.0)]) == pytest.approx((0.2 + 1) / 2)


def test_a_calibration_in_a_file(tmp_path: Path) -> None:
    examples = binary(6.0, 30, 10)
    Random(0).shuffle(examples)
    calibration = Calibration.fitted(examples, model="m", fingerprint="fp_1")
    assert calibration.temperature == pytest.approx(6 / math.log(3), rel=1e-4)
    assert calibration.error_after < calibration.error_before
    assert calibration.loss_after < calibration.loss_before
    path = tmp_path / "door.json"
    calibration.write(path)
    assert Calibration.read(path, "fp_1") == calibration
    with pytest.raises(CalibrationError, match="another model, m"):
        Calibration.read(path, "fp_2")
    with pytest.raises(CalibrationError, match="cannot be read"):
        Calibration.read(tmp_path / "none.json", "fp_1")
    values = json.loads(path.read_text())
    damaged: list[dict[str, Any]] = [
        {"temperature": "warm"}, {"temperature": "1.5"}, {"temperature": True}, {"temperature": None},
        {"temperature": math.nan}, {"temperature": 10**400}, {"format": 2}, {"model": 1}, {"fingerprint": ["fp_1"]},
        {"examples": "40"}, {"examples": 1.5}, {"error_after": "low"}, {"loss_before": math.inf}, {"more": 1},
    ]  # fmt: skip
    for wrong in ("", "[]", "{}", *(json.dumps({**values, **each}) for each in damaged)):
        path.write_text(wrong)
        with pytest.raises(CalibrationError, match="is not a calibration"):
            Calibration.read(path, "fp_1")
    path.write_text(json.dumps({**values, "temperature": 2}))
    assert isinstance(Calibration.read(path, "fp_1").temperature, float)
    path.write_text(json.dumps({**values, "temperature": 0.0}))
    with pytest.raises(CalibrationError, match="no temperature"):
        Calibration.read(path, "fp_1")
    with pytest.raises(CalibrationError, match="cannot be written"):
        calibration.write(tmp_path / "none" / "door.json")
    with pytest.raises(PocketVLMError, match="too few"):
        Calibration.fitted(examples[:9], model="m", fingerprint="fp_1")


# ---- labelled questions


def test_labelled_questions(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    table = tmp_path / "labels.csv"
    table.write_text("\ufeffimage,question,answer\na.png,Is it?,YES\na.png,,false\n", "utf-8")
    first, second = read_labelled(table, YES_NO, "Was it?")
    assert first.pictures == (str(tmp_path / "a.png"),)
    assert [(one.question, one.answer) for one in (first, second)] == [("Is it?", 0), ("Was it?", 1)]
    lines = tmp_path / "labels.jsonl"
    lines.write_text('{"image": ["a.png"], "prompt": "How many?", "answer": 3}\n\n')
    assert read_labelled(lines, scale_of("0-9"))[0].answer == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no labelled questions"),
        ("{}", "line 1: needs a picture"),
        ("[]", "line 1: is not a JSON object"),
        ('{"image": "a.png", "answer": "yes"}', "needs a question"),
        ('{"image": "a.png", "prompt": "?", "answer": "maybe"}', "must be one of yes, no, not 'maybe'"),
        ('{"image": "a.png", "prompt": "?"}', "must be one of yes, no"),
        ('{"image": "b.png", "prompt": "?", "answer": "yes"}', "there is no file"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_wrong_labels(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.png").touch()
    path = tmp_path / "labels.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RequestError, match=message):
        read_labelled(path, YES_NO)


# ---- requests of batches and options


def test_lines_that_ask_for_decisions(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    body = {"input": "x", "questions": [{"type": "predicate", "instructions": "Is it?"}] * 2}
    lines = [
        {"image": "a.png", "prompt": "Which?", "choices": ["red", "blue"]},
        {"image": "a.png", "prompt": "How many?", "scale": [0, 3]},
        {"image": "a.png", "prompt": "Is it?"},
        {"custom_id": "theirs", "method": "POST", "url": "/v1/decisions", "body": body},
        {"image": "a.png", "prompt": "Which?", "choices": ["red"]},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    batch = read_batch([path], Defaults(choices={"yes_no": True}))
    asked = [AskedItem.parse(batch.body(item)) for item in batch.items[:4]]
    assert [[choices.kind for choices in one.choices] for one in asked] == [
        ["choice"], ["scale"], ["yes_no"], ["yes_no", "yes_no"]
    ]  # fmt: skip
    assert [len(one.decisions) for one in asked] == [0, 0, 0, 2]
    with pytest.raises(RequestError, match="from 2 to 255"):
        AskedItem.parse(batch.body(batch.items[4]))
    plain = read_batch([path], Defaults())
    assert plain.items[2].hash != batch.items[2].hash
    assert not AskedItem.parse(plain.body(plain.items[2])).choices


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ((["a"], False, None), "--choice"),
        ((["a", "a"], False, None), "--choice"),
        ((None, False, "9-0"), "--scale"),
        ((None, False, "many"), "--scale"),
        ((["a", "b"], True, None), "--yes-no"),
        ((None, True, "0-3"), "--scale"),
    ],
)
def test_wrong_options(arguments: Any, flag: str) -> None:
    with pytest.raises(RequestError) as error:
        given_choices(*arguments)
    assert error.value.param == flag


def test_fields_of_a_chat_are_refused_at_once() -> None:
    with pytest.raises(RequestError) as error:
        Defaults(choices={"yes_no": True}, fields={"max_tokens": 5})
    assert error.value.param == "max_tokens"


def test_given_options() -> None:
    assert given_choices(None, False, "-5..5") == {"scale": [-5, 5]}
    assert given_choices(None, True, None) == {"yes_no": True}
    assert given_choices(["a", "b"], False, None) == {"choices": ["a", "b"]}
    assert given_choices(None, False, None) == {}


# ---- what stands around an answer


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("{% for m in messages %}{{m.role}}: {{m.content}}<e>\n{% endfor %}{% if add_generation_prompt %}assistant:"
         "{% endif %}", (" ", "<e>\n")),
        ("{% for m in messages %}<{{m.role}}>\n{{m.content}}<e>{% endfor %}{% if add_generation_prompt %}<assistant>\n"
         "{% endif %}", ("", "<e>")),
        ("{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}{% if add_generation_prompt %}<assistant><think>"
         "{% endif %}", ("", "")),
    ],
)  # fmt: skip
def test_the_space_before_an_answer(source: str, texts: tuple[str, str]) -> None:
    assert texts_around_answer(ChatTemplate(source)) == texts


def test_choices_keep_their_order() -> None:
    choices = texts_of([" b ", "a"])
    assert choices.names == ("b", "a")
    assert choices.flat == ("b", "a")
    assert choices.path(1) == "choices.1"
    assert scale_of((-1, 1)).names == ("-1", "0", "1")
    assert scale_of((-1, 1)).numbers == (-1, 0, 1)
