"""Random conversations with an engine that remembers; each answer is compared with that of one that has forgotten all.

Turns are appended, inserted, edited and dropped, pictures are swapped, conversations branch, answers are cut off, and
several of them take turns on fewer lanes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from engine_seam import forget, generate, prompt_of, prompt_rows
from integration.asking import settle
from pocketvlm import VLM
from pocketvlm.engine.interface import Generation, PrefillDone, Token
from pocketvlm.engine.kv_cache.prefix_cache import CachedPrefix
from pocketvlm.native.sampler import Sampling

WORDS = "What colour is the circle square left of top How many shapes are there number red blue and why".split()
SIZES = [(30, 40), (96, 96), (150, 60), (64, 110)]
ANSWER = 6  # tokens, at most
TOP = 64  # likeliest tokens that are compared at each of them
CLOSE = 1e-3  # of logarithms of probabilities
TURNS = 5  # of one conversation
SHORT = (1, 12)  # words of a message: least and most


@dataclass
class Turn:
    """A prompt, what came of it, and how much of it was in a cache."""

    messages: list[dict[str, Any]]
    tokens: list[int] = field(default_factory=list)
    scores: list[dict[int, float]] = field(default_factory=list)
    text: str = ""
    prompt: int = 0
    cached: int = 0


@dataclass
class Difference:
    """Over all turns: answers that differ, and of `each` the largest difference of a log probability before they do."""

    other: int = 0
    each: list[float] = field(default_factory=list)
    prompt: int = 0
    cached: int = 0

    @property
    def largest(self) -> float:
        return max(self.each, default=0.0)

    def __str__(self) -> str:
        share = self.cached / max(1, self.prompt)
        told = f"{len(self.each)} answers, {self.other} of other tokens, largest difference {self.largest:.2g}"
        return f"{told}, {share:.0%} cached"


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)


PICTURES = [picture(number) for number in range(8)]


def said(rng: Random, pictures: float = 0.5, words: tuple[int, int] = SHORT) -> dict[str, Any]:
    """A user's message, perhaps with pictures."""
    text = {"type": "text", "text": " ".join(rng.choices(WORDS, k=rng.randint(*words)))}
    shown: list[dict[str, Any]] = []
    while rng.random() < pictures and len(shown) < 2:
        shown.append({"type": "image", "image": rng.choice(PICTURES)})
    return {"role": "user", "content": [*shown, text] if rng.random() < 0.7 else [text, *shown]}


def change(messages: list[dict[str, Any]], rng: Random, words: tuple[int, int]) -> None:
    """Insert, edit or drop a turn, or swap a picture, anywhere; who speaks still alternates."""
    asked = range(0, len(messages), 2)
    at = rng.choice(asked)
    kind = rng.choice(["insert", "edit", "drop", "swap", "answer"])
    if kind == "insert":
        messages[at:at] = [said(rng, words=words), {"role": "assistant", "content": rng.choice(WORDS)}]
    elif kind == "drop" and len(messages) > 2:
        del messages[at : at + 2]
    elif kind == "swap":
        for part in messages[at]["content"]:
            if part["type"] == "image":
                part["image"] = rng.choice(PICTURES)
    elif kind == "answer" and at + 1 < len(messages):
        messages[at + 1] = {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=3))}
    else:
        messages[at] = said(rng, words=words)
    if messages[-1]["role"] != "user":
        messages.append(said(rng, 0.2, words))


def converse(vlm: VLM, seed: int, words: tuple[int, int]) -> list[Turn]:
    """Two conversations by turns, the second a branch of the first."""
    rng = Random(seed)
    found: list[Turn] = []
    talks: list[list[dict[str, Any]]] = [[said(rng, 0.8, words)]]
    for _ in range(TURNS):
        messages = rng.choice(talks)
        if rng.random() < 0.15:
            answer(vlm, messages, stop=rng.randint(1, 4))
        turn = answer(vlm, messages, count=rng.randint(1, ANSWER))
        found.append(turn)
        messages += [{"role": "assistant", "content": turn.text or "So."}, said(rng, 0.3, words)]
        if rng.random() < 0.4:
            change(messages, rng, words)
        if len(talks) < 2 and rng.random() < 0.4:
            talks.append(copy.copy(messages[: rng.randrange(1, len(messages) + 1, 2)]))
        if len(messages) > 7:
            del messages[: len(messages) - 5]
    return found


def answer(vlm: VLM, messages: list[dict[str, Any]], *, count: int = ANSWER, stop: int | None = None) -> Turn:
    """`stop`: given up after so many events."""
    turn = Turn(copy.deepcopy(messages))
    request = Generation(prompt_of(vlm, messages), Sampling(), max_tokens=count, top_logprobs=TOP)
    data = b""
    with closing(generate(vlm, request)) as events:
        for number, event in enumerate(events):
            if isinstance(event, PrefillDone):
                turn.prompt, turn.cached = event.prompt_tokens, event.cached_tokens
            elif isinstance(event, Token):
                assert event.score is not None
                turn.tokens.append(event.id)
                turn.scores.append({token: logprob for token, _, logprob in event.score.top})
                data += event.data
            if number == stop:
                break
    turn.text = data.decode("utf-8", "replace").strip()
    return turn


def compare(load: Callable[..., VLM], seeds: range, *, lanes: int = 4, together: int = 3) -> Difference:
    """Hold the conversations, then every prompt of them once more with nothing known."""
    turns = hold(load, seeds, lanes=lanes, together=together)
    return differ(turns, replay(load, turns))


def hold(
    load: Callable[..., VLM],
    seeds: range,
    *,
    lanes: int = 4,
    together: int = 3,
    words: tuple[int, int] = SHORT,
) -> list[Turn]:
    with load(parallel=lanes) as warm, ThreadPoolExecutor(together) as pool:
        return [turn for talk in pool.map(lambda seed: converse(warm, seed, words), seeds) for turn in talk]


def replay(load: Callable[..., VLM], turns: list[Turn], *, rows: int | None = None) -> list[Turn]:
    """The same prompts, each with nothing known; `rows` of them at once, instead of as many as a batch takes."""
    made = []
    with load(parallel=1) as cold:
        if rows is not None:
            prompt_rows(cold, rows)
        for turn in turns:
            settle(cold)
            forget(cold)
            made.append(_again(cold, turn))
    return made


def replay_together(load: Callable[..., VLM], turns: list[Turn], *, lanes: int = 4, together: int = 3) -> list[Turn]:
    """The same prompts, as many at a time as when they were held, by an engine that finds nothing in its cache."""
    with (
        mock.patch.object(CachedPrefix, "common", lambda *_: 0),
        load(parallel=lanes) as cold,
        ThreadPoolExecutor(together) as pool,
    ):
        return list(pool.map(lambda turn: _again(cold, turn), turns))


def _again(cold: VLM, turn: Turn) -> Turn:
    made = answer(cold, turn.messages, count=max(1, len(turn.tokens)))
    assert made.cached == 0
    return made


def differ(some: list[Turn], others: list[Turn]) -> Difference:
    """Of each answer, up to the first token that differs."""
    found = Difference()
    for one, two in zip(some, others, strict=True):
        largest = 0.0
        for a, b, here, there in zip(one.tokens, two.tokens, one.scores, two.scores, strict=False):
            largest = max([largest, *(abs(here[token] - there[token]) for token in here.keys() & there.keys())])
            if a != b:
                break
        found.each.append(largest)
        found.other += one.tokens != two.tokens[: len(one.tokens)]
        found.prompt += one.prompt
        found.cached += one.cached
    return found
