"""Yes-or-no questions, with both answers equally likely."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .scenes import COLOURS, CORNERS, SHAPES, SIZES, WORDS, Scene
from .words import article, at, name_of, shape_at


def yes_or_no(scene: Scene, rng: Random) -> tuple[str, str] | None:
    """Return a question and its answer, or None if the chosen kind of question does not fit the scene."""
    truth = rng.random() < 0.5
    questions: list[Callable[[], str | None]] = [
        lambda: _is_there_thing(scene, rng, truth),
        lambda: _is_there_thing(scene, rng, truth),
        lambda: _is_it_coloured(scene, rng, truth),
        lambda: _is_it_sized(scene, rng, truth),
        lambda: _is_it_at(scene, rng, truth),
        lambda: _are_there_many(scene, rng, truth),
        lambda: _is_text_there(scene, rng, truth),
    ]
    question = rng.choice(questions)()
    return (question, "Yes" if truth else "No") if question else None


def _is_there_thing(scene: Scene, rng: Random, truth: bool) -> str | None:
    things = {s.shape for s in scene.shapes} | {f"{s.colour} {s.shape}" for s in scene.shapes}
    if truth:
        if not things:
            return None
        thing = rng.choice(sorted(things))
    else:
        near = [f"{rng.choice(list(COLOURS))} {s.shape}" for s in scene.shapes]
        near += [f"{s.colour} {rng.choice(SHAPES)}" for s in scene.shapes]
        absent = sorted({*near, *SHAPES} - things)
        thing = rng.choice(absent)
    return rng.choice(
        (f"Is there {article(thing)}?", f"Do you see {article(thing)}?", f"Is there {article(thing)} in the picture?")
    )


def _is_it_coloured(scene: Scene, rng: Random, truth: bool) -> str | None:
    named = [s for s in scene.shapes if sum(o.shape == s.shape for o in scene.shapes) == 1]
    if not named:
        return None
    shape = rng.choice(named)
    colour = shape.colour if truth else rng.choice([c for c in COLOURS if c != shape.colour])
    return f"Is the {shape.shape} {colour}?"


def _is_it_sized(scene: Scene, rng: Random, truth: bool) -> str | None:
    named = [s for s in scene.shapes if sum(o.shape == s.shape for o in scene.shapes) == 1]
    if not named:
        return None
    shape = rng.choice(named)
    size = shape.size if truth else SIZES[1 - SIZES.index(shape.size)]
    return f"Is the {shape.shape} {size}?"


def _is_it_at(scene: Scene, rng: Random, truth: bool) -> str | None:
    corners = [s for s in scene.shapes if s.place in CORNERS]
    if not corners:
        return None
    if rng.random() < 0.5:
        free = [
            c for c in CORNERS if shape_at(scene, c) is None and not (scene.text and c.startswith(scene.text.place))
        ]
        if not truth and not free:
            return None
        place = rng.choice(corners).place if truth else rng.choice(free)
        return rng.choice((f"Is there anything {at(place)}?", f"Is there a shape {at(place)}?"))
    shape = rng.choice(corners)
    which = name_of(scene, shape, rng)
    if which is None:
        return None
    place = shape.place if truth else rng.choice([c for c in CORNERS if c != shape.place])
    return f"Is the {which} {at(place)}?"


def _are_there_many(scene: Scene, rng: Random, truth: bool) -> str | None:
    words = ("one", "two", "three", "four")
    count = len(scene.shapes)
    if count == 0:
        return None
    number = count if truth else rng.choice([n for n in range(1, 5) if n != count])
    return "Is there one shape?" if number == 1 else f"Are there {words[number - 1]} shapes?"


def _is_text_there(scene: Scene, rng: Random, truth: bool) -> str | None:
    kinds = ["number", "word"]
    if truth:
        if not scene.text:
            return None
        kind = scene.text.kind
    else:
        if scene.text and scene.text.kind not in kinds:
            return None  # a line of words is no word, but who asks may mean it
        kind = rng.choice([k for k in kinds if not scene.text or scene.text.kind != k])
    if scene.text and scene.text.kind in kinds and rng.random() < 0.4:
        text = scene.text.text
        if not truth:
            others = (
                list(WORDS)
                if scene.text.kind == "word"
                else [str(n) for n in range(10 ** (len(text) - 1), 10 ** len(text))]
            )
            text = rng.choice([t for t in others if t != text])
        return rng.choice((f"Does it say {text}?", f"Is the {scene.text.kind} {text}?"))
    return rng.choice((f"Is there a {kind}?", f"Do you see a {kind}?", f"Is a {kind} printed in the picture?"))
