"""Drafts from what stood before, against a search by brute force; and how many of them pay."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from pocketvlm.engine.scheduling.prefill_budget import MAX_STEP_SLOWDOWN
from pocketvlm.engine.speculative.draft_length import MAX_DRAFT_TOKENS, DraftLengthPolicy
from pocketvlm.engine.speculative.ngram import NgramProposer


class Search:
    """The same guesses, found by looking through everything, every time."""

    def __init__(self, prompt: list[int]) -> None:
        self.tokens = prompt
        self.at: int | None = None

    def add(self, token: int) -> None:
        right = self.at is not None and self.tokens[self.at] == token
        self.tokens = [*self.tokens, token]
        self.at = self.at + 1 if right and self.at is not None else self._found()

    def _found(self) -> int | None:
        for size in (3, 2):
            end = self.tokens[-size:]
            for at in range(len(self.tokens) - 1, size - 1, -1):
                if self.tokens[at - size : at] == end:
                    return at
        return None

    def draft(self, most: int) -> list[int]:
        if self.at is None:
            return []
        tokens = list(self.tokens)
        for at in range(self.at, self.at + most):
            tokens.append(tokens[at])
        found = tokens[len(self.tokens) :]
        return found[: next((i for i, token in enumerate(found) if token < 0), most)]


@pytest.mark.parametrize("seed", range(20))
def test_as_by_brute_force(seed: int) -> None:
    rng = Random(seed)
    words = rng.choice((2, 4, 12))
    pictures = iter(range(1, 1000))
    prompt = [rng.randrange(words) if rng.random() < 0.9 else -next(pictures) for _ in range(rng.randrange(60))]
    lookup, search = NgramProposer(prompt), Search(prompt)
    drafts = 0
    for _ in range(150):
        drafted = search.draft(6)
        token = drafted[0] if drafted and rng.random() < 0.7 else rng.randrange(words)
        lookup.add(token)
        search.add(token)
        most = rng.randrange(1, 20)
        assert lookup.draft(most) == search.draft(most)
        drafts += bool(lookup.draft(most))
    assert drafts > 50


def test_a_picture_is_never_drafted() -> None:
    lookup = NgramProposer([1, 2, 3, -4, 5])
    lookup.add(1)
    lookup.add(2)
    assert lookup.draft(5) == [3]
    lookup.add(3)
    assert lookup.draft(5) == []


def test_what_repeats_is_drafted_as_if_it_went_on() -> None:
    lookup = NgramProposer([7, 8])
    for token in (9, 7, 8):
        lookup.add(token)
    assert lookup.draft(7) == [9, 7, 8, 9, 7, 8, 9]


def test_guesses_that_are_right_are_trusted() -> None:
    text = Random(1).sample(range(1000), 200)
    copying, other = NgramProposer(text), NgramProposer(text)
    for token in text[:100]:
        copying.add(token)
    for at in range(50, 190, 3):  # two tokens of the text, and then another
        for token in (text[at], text[at + 1], 1000 + at):
            other.add(token)
    other.add(text[40])
    other.add(text[41])
    certain, doubtful = copying.chances(MAX_DRAFT_TOKENS), other.chances(MAX_DRAFT_TOKENS)
    assert all(before >= after for before, after in pairwise(certain))
    assert certain[-1] > 0.5
    assert doubtful[0] < 0.1


def drafted(seconds: dict[int, float], chances: list[float], steps: int = 400, answers: int = 1) -> list[int]:
    """How many tokens are drafted in each step of a machine where steps of so many rows take so long."""
    speculation = DraftLengthPolicy("auto")
    found = []
    for _ in range(steps):
        found.append(speculation.draft_count(answers, chances, 2, False))
        rows = answers + found[-1]
        speculation.record(time_of(seconds, rows), rows, 2)
    return found


def time_of(seconds: dict[int, float], rows: int) -> float:
    return next(time for size, time in sorted(seconds.items()) if size >= rows)


ALMOST_FREE = {1: 1.0, 2: 1.02, 4: 1.05, 8: 1.1, 16: 1.2}
DEAR = {1: 1.0, 2: 2.1, 3: 3.0, 4: 4.0, 8: 8.0, 16: 16.0}


def test_as_many_as_pay() -> None:
    assert drafted(ALMOST_FREE, [0.99**i for i in range(1, 16)])[-1] == 15
    assert drafted(ALMOST_FREE, [0.99**i for i in range(1, 6)])[-1] == 5
    assert 1 <= drafted(ALMOST_FREE, [0.5**i for i in range(1, 16)])[-1] <= 7
    assert drafted(ALMOST_FREE, [0.01])[-1] == 0
    steps = {1: 1.0, 3: 2.4, 4: 2.8, 6: 4.3, 8: 4.5, 12: 6.3, 16: 9.5}
    found = drafted(steps, [0.98**i for i in range(1, 16)])
    assert found.count(7) + found.count(11) > 370  # nearly equal; 15 and 5 are worse


@pytest.mark.parametrize("chances", [[0.99**i for i in range(1, 16)], [0.4], [0.5**i for i in range(1, 16)]])
def test_little_is_lost_where_it_never_pays(chances: list[float]) -> None:
    taken = drafted(DEAR, chances, 2000)
    seconds = sum(time_of(DEAR, 1 + count) for count in taken)
    assert sum(1 + sum(chances[:count]) for count in taken) / seconds > 0.97


def test_tried_again_where_it_pays_by_now() -> None:
    speculation = DraftLengthPolicy("auto")
    for step in range(3000):
        rows = 1 + speculation.draft_count(1, [0.9], 2, False)
        speculation.record({1: 1.0, 2: 2.0 if step < 500 else 1.1}[rows], rows, 2)
    assert speculation.draft_count(1, [0.9], 2, False) == 1


def test_answers_share_the_budget() -> None:
    chances = sorted([0.9**i for i in range(1, 16)] * 3, reverse=True)
    assert max(drafted({64: 1.0}, chances, answers=3)) <= MAX_DRAFT_TOKENS
    assert len(set(drafted({64: 1.0}, chances, answers=3)[4:])) == 1


@pytest.mark.parametrize(("answers", "shared"), [(4, False), (1, True)])
def test_no_step_that_others_feel(answers: int, shared: bool) -> None:
    """Sixteen rows would pay, but take as long as eight tokens."""
    steps = {1: 1.0, 2: 1.3, 3: 1.6, 4: 1.8, 6: 2.1, 8: 3.0, 16: 4.0, 32: 5.0}
    usual = time_of(steps, answers)
    speculation, taken = DraftLengthPolicy("auto"), []
    speculation.record(usual, answers, 2)
    for _ in range(400):
        count = speculation.draft_count(answers, [0.99**i for i in range(1, 16)], 2, shared)
        taken.append(time_of(steps, answers + count))
        speculation.record(taken[-1], answers + count, 2)
    assert usual < taken[-1] <= MAX_STEP_SLOWDOWN * usual
    assert sum(time > MAX_STEP_SLOWDOWN * usual for time in taken) <= 2, "sizes are tried from small to large"


def test_always_and_by_the_number_of_threads() -> None:
    assert DraftLengthPolicy("on").draft_count(1, [0.01] * 40, 2, False) == MAX_DRAFT_TOKENS
    speculation = DraftLengthPolicy("auto")
    for rows in (1, 2):
        speculation.record(1.0, rows, 2)
    assert speculation.draft_count(1, [0.9], 2, False) == 1
    assert speculation.draft_count(1, [0.9], 1, True) == 0, "nothing is known of steps with fewer cores"
