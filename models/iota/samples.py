"""Training samples: a conversation as token ids, a mask of the learned tokens, and the tiles of its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

from pocketvlm.messages import Detail
from pocketvlm.vision.families.smolvlm import SmolVLM
from pocketvlm.vision.family import RGB

from .questions import WEIGHTS, conversation, no_picture
from .scenes import Scene, drawn, random_page, random_scene
from .styles import styled
from .turn import Turn

SYSTEM = ("You are a helpful assistant.", "Answer briefly.", "Look at the picture and answer.")


@dataclass(frozen=True)
class Phase:
    """The mixture of samples until step `until`.

    Shares are from 0 to 1: `pairs` of conversations about two pictures, `text` of scenes with a printed text (large,
    because reading is learned last), `low` and `high` of these details, where the rest is auto; `pages` of lines and
    tables, `styles` of pictures in many styles. `turns` are the numbers of turns to choose from, `shares` the weights
    of the kinds of questions.
    """

    until: int
    pairs: float
    text: float
    low: float
    high: float
    pages: float = 0.0
    styles: float = 0.0
    more: float = 0.0
    turns: tuple[int, ...] = (3, 6, 8, 10)
    shares: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)


@dataclass(frozen=True)
class Sample:
    ids: npt.NDArray[np.int32]  # [tokens]
    learned: npt.NDArray[np.bool_]  # [tokens], true on answers and their end mark
    kinds: npt.NDArray[np.int8]  # [tokens], index of the turn that a learned token belongs to, else -1
    turns: tuple[Turn, ...]
    tiles: RGB  # [tiles, edge, edge, 3]
    scenes: tuple[Scene, ...]  # the scenes in the order of their pictures
    overviews: tuple[int, ...]  # for each picture, the index of the tile with the whole picture


class Sampler:
    """A deterministic source of samples: phase and index determine a sample."""

    def __init__(self, tokenizer: Tokenizer, family: SmolVLM, seed: int) -> None:
        self._family = family
        self._seed = seed
        self._image = int(tokenizer.token_to_id("<image>") or 0)

        @lru_cache(maxsize=20000)
        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        self._encode = encode

    def sample(self, index: int, phase: Phase) -> Sample:
        rng = Random(self._seed * 1_000_003 + index)
        if rng.random() < 0.02:
            return self._build([no_picture(rng)], [], "low", rng)
        pictures = 2 if rng.random() < phase.pairs else 1
        scenes = tuple(random_scene(rng, phase.text) for _ in range(pictures))
        if pictures == 2 and rng.random() < 0.3:  # two texts to distinguish
            scenes = tuple(s if s.text else random_scene(rng, phase.text) for s in scenes)
        if pictures == 1 and rng.random() < phase.pages:
            scenes = (random_page(rng),)
        shown = [self._draw(scene, phase, rng) for scene in scenes]
        turns = conversation(tuple(scene for _, scene in shown), rng, rng.choice(phase.turns), phase.shares)
        chance = rng.random()
        detail: Detail = "low" if chance < phase.low else "high" if chance < phase.low + phase.high else "auto"
        return self._build(turns, shown, detail, rng)

    def picture(self, index: int, phase: Phase) -> tuple[RGB, Scene]:
        """Return one more picture as its one tile [edge, edge, 3], and its scene: for the hints alone."""
        rng = Random(self._seed * 1_000_003 + index + 0.5)
        scene = random_page(rng) if rng.random() < phase.pages else random_scene(rng, phase.text)
        image, scene = self._draw(scene, phase, rng)
        [tile] = self._family.tiles(np.asarray(image), self._family.plan(image.size, "low"))
        return tile, scene

    def _draw(self, scene: Scene, phase: Phase, rng: Random) -> tuple[Image.Image, Scene]:
        # Half as often where something is printed: reading is hard enough on plain grounds.
        share = phase.styles / 2 if scene.text else phase.styles
        return (styled if rng.random() < share else drawn)(scene, rng)

    def _build(
        self, turns: list[Turn], drawings: list[tuple[Image.Image, Scene]], detail: Detail, rng: Random
    ) -> Sample:
        ids: list[int] = []
        owner: list[int] = []
        tiles: list[RGB] = []
        shown: list[Scene] = []
        overviews: list[int] = []

        def say(text: str, turn: int = -1) -> None:
            new = self._encode(text)
            ids.extend(new)
            owner.extend([turn] * len(new))

        def show(picture: int) -> None:
            image, scene = drawings[picture]
            pixels = np.asarray(image)
            plan = self._family.plan((pixels.shape[1], pixels.shape[0]), detail)
            tiles.extend(self._family.tiles(pixels, plan))
            shown.append(scene)
            overviews.append(len(tiles) - 1)
            for piece in plan.layout:
                if isinstance(piece, str):
                    say(piece)
                else:
                    ids.extend([self._image] * piece.tokens)
                    owner.extend([-1] * piece.tokens)

        say("<|im_start|>")
        if rng.random() < 0.05:
            say(f"System: {rng.choice(SYSTEM)}<end_of_utterance>\n")
        for number, turn in enumerate(turns):
            text_first = len(turn.pictures) == 1 and rng.random() < 0.3
            if text_first:
                say(f"User: {turn.question}")
            elif turn.pictures:
                say("User:")
            for picture in turn.pictures:
                show(picture)
            if not text_first:
                say(turn.question if turn.pictures else f"User: {turn.question}")
            say("<end_of_utterance>\n")
            say("Assistant:")
            say(f" {turn.answer}<end_of_utterance>", number)
            say("\n")
        edge = self._family.tile
        kinds = np.asarray(owner, dtype=np.int8)
        pixels = np.stack(tiles) if tiles else np.zeros((0, edge, edge, 3), np.uint8)
        return Sample(
            np.asarray(ids, dtype=np.int32), kinds >= 0, kinds, tuple(turns), pixels, tuple(shown), tuple(overviews)
        )


def phase_at(step: int, phases: Sequence[Phase]) -> Phase:
    return next((p for p in phases if step < p.until), phases[-1])


def batches(sampler: Sampler, start: int, size: int, phases: Sequence[Phase], pool: int = 8) -> Iterator[list[Sample]]:
    """Yield batches from step `start` on. `pool` batches are sorted together, so a batch has similar lengths."""
    step = start - start % pool
    while True:
        phase = phase_at(step, phases)
        samples = [sampler.sample(step * size + i, phase) for i in range(size * pool)]
        samples.sort(key=lambda s: len(s.ids))
        order = list(range(pool))
        Random(step).shuffle(order)
        for number, position in enumerate(order):
            if step + number >= start:
                yield samples[position * size : (position + 1) * size]
        step += pool
