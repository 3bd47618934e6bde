"""Questions about iota's pictures, in several phrasings, with the right answers.

`conversation` makes a training sample, turns about one or two pictures. `ask` makes one question of a given kind. Every
answer follows from the scene, so the state of the generator determines the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from .absent import ask_absent
from .boxes import ask_boxes
from .pages import ask_page
from .records import ask_record
from .scenes import COLOURS, CORNERS, SHAPES, SIZES, Scene, Shape
from .turn import Turn
from .words import article, at, name_of, plural, shape_at
from .yes_no import yes_or_no

KINDS = ("describe", "shape", "colour", "size", "place", "count", "yesno", "read")
ORDINALS = ("first", "second")


def describe(scene: Scene) -> str:
    parts = [article(f"{s.size} {s.colour} {s.shape}") + " " + at(s.place) for s in scene.shapes]
    if scene.text:
        text = scene.text
        said = f"the {text.kind}" if text.kind == "table" else f"the {text.kind} {text.text}"
        printed = f"{said} in {text.colour} {at(text.place)}"
        parts = [printed, *parts] if text.place == "top" else [*parts, printed]
    if not parts:
        return "An empty picture."
    sentence = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return sentence[0].upper() + sentence[1:] + "."


def _places(scene: Scene) -> tuple[str, ...]:
    """Return the places to ask about: the corners, or the middle if the only shape is there."""
    return ("middle",) if any(s.place == "middle" for s in scene.shapes) else CORNERS


def _describe(scene: Scene, rng: Random) -> Turn:
    question = rng.choice(
        (
            "Describe the picture.",
            "Describe this image.",
            "What is in the picture?",
            "What do you see?",
            "What can you see in this image?",
            "What is this?",
            "What is in this image?",
            "Describe what you see.",
        )
    )
    return Turn("describe", question, describe(scene), about=scene.shapes[0] if len(scene.shapes) == 1 else None)


def _shape(scene: Scene, rng: Random) -> Turn | None:
    place = rng.choice(_places(scene))
    shape = shape_at(scene, place)
    if shape is None and scene.shapes and rng.random() < 0.6:
        shape = rng.choice(scene.shapes)
        place = shape.place
    question = rng.choice(
        (
            f"What shape is {at(place)}?",
            f"Which shape is {at(place)}?",
            f"What is {at(place)}?",
            f"What shape do you see {at(place)}?",
        )
    )
    if shape is None:
        if scene.text and place.startswith(scene.text.place):
            return None
        return Turn("shape", question, "Nothing")
    return Turn("shape", question, article(shape.shape).capitalize(), about=shape)


def _colour(scene: Scene, rng: Random) -> Turn | None:
    colour = rng.choice(("colour", "color"))
    if scene.text and (not scene.shapes or rng.random() < 0.4):
        kind = scene.text.kind
        question = rng.choice(
            (f"What {colour} is the {kind}?", f"Which {colour} is the {kind}?", f"What is the {colour} of the {kind}?")
        )
        return Turn("colour", question, scene.text.colour.capitalize())
    if not scene.shapes:
        return None
    shape = rng.choice(scene.shapes)
    which = None
    if sum(s.shape == shape.shape for s in scene.shapes) == 1 and rng.random() < 0.5:
        which = shape.shape
    which = which or f"shape {at(shape.place)}"
    question = rng.choice(
        (f"What {colour} is the {which}?", f"Which {colour} is the {which}?", f"What is the {colour} of the {which}?")
    )
    return Turn("colour", question, shape.colour.capitalize(), about=shape)


def _size(scene: Scene, rng: Random) -> Turn | None:
    if not scene.shapes:
        return None
    shape = rng.choice(scene.shapes)
    which = name_of(scene, shape, rng) if rng.random() < 0.5 else None
    if which and which.startswith(SIZES):
        which = None
    which = which or f"shape {at(shape.place)}"
    question = rng.choice((f"What size is the {which}?", f"How big is the {which}?", f"Is the {which} small or large?"))
    return Turn("size", question, shape.size.capitalize(), about=shape)


def _place(scene: Scene, rng: Random) -> Turn | None:
    if scene.text and (not scene.shapes or rng.random() < 0.25):
        kind = scene.text.kind
        question = rng.choice((f"Where is the {kind}?", f"In which place is the {kind}?"))
        return Turn("place", question, at(scene.text.place).capitalize())
    if not scene.shapes:
        return None
    shape = rng.choice(scene.shapes)
    which = name_of(scene, shape, rng)
    if which is None:
        return None
    question = rng.choice(
        (f"Where is the {which}?", f"In which place is the {which}?", f"Where do you see the {which}?")
    )
    return Turn("place", question, at(shape.place).capitalize(), about=shape)


def _count(scene: Scene, rng: Random) -> Turn:
    what = rng.choice(("all", "all", "shape", "colour", "size"))
    shapes = scene.shapes
    if what == "shape":
        chosen = _pick(rng, [s.shape for s in shapes], list(SHAPES))
        noun, number = plural(chosen), sum(s.shape == chosen for s in shapes)
    elif what == "colour":
        chosen = _pick(rng, [s.colour for s in shapes], list(COLOURS))
        noun, number = f"{chosen} shapes", sum(s.colour == chosen for s in shapes)
    elif what == "size":
        chosen = rng.choice(SIZES)
        noun, number = f"{chosen} shapes", sum(s.size == chosen for s in shapes)
    else:
        noun, number = rng.choice(("shapes", "shapes", "objects")), len(shapes)
    question = rng.choice(
        (
            f"How many {noun} are there?",
            f"How many {noun} do you see?",
            f"Count the {noun}.",
            f"How many {noun} are in the picture?",
        )
    )
    return Turn("count", question, str(number))


def _pick(rng: Random, present: list[str], every: list[str]) -> str:
    """Choose something present three times out of four; choosing among all would make "none" the usual answer."""
    return rng.choice(present) if present and rng.random() < 0.75 else rng.choice(every)


def _yesno(scene: Scene, rng: Random) -> Turn | None:
    question = yes_or_no(scene, rng)
    return Turn("yesno", *question) if question else None


def _read(scene: Scene, rng: Random) -> Turn | None:
    if scene.text is None:
        return None
    kind = scene.text.kind
    question = rng.choice(
        (
            f"What {kind} is printed?",
            f"Read the {kind}.",
            f"What is the {kind}?",
            f"Which {kind} do you see?",
            "What does it say?",
            "Read the text.",
            "What is written here?",
            "What text is in the picture?",
        )
    )
    return Turn("read", question, scene.text.text)


_ASK: dict[str, Callable[[Scene, Random], Turn | None]] = {
    "describe": _describe,
    "shape": _shape,
    "colour": _colour,
    "size": _size,
    "place": _place,
    "count": _count,
    "yesno": _yesno,
    "read": _read,
    "boxes": ask_boxes,
    "record": ask_record,
    "absent": ask_absent,
    "page": ask_page,
}


def ask(scene: Scene, kind: str, rng: Random) -> Turn | None:
    """Return a question of `kind` about `scene`, or None if the scene does not allow it."""
    return _ASK[kind](scene, rng)


def follow_up(before: Turn, rng: Random) -> Turn | None:
    """Return a question with "it", which refers to the turn before, or None if that turn is not about one shape."""
    it = before.about
    if it is None:
        return None
    colour = rng.choice(("colour", "color"))
    kinds = {
        "colour": (
            (f"What {colour} is it?", f"And what {colour} is it?", f"Which {colour} is it?"),
            it.colour.capitalize(),
        ),
        "size": (
            ("How big is it?", "What size is it?", "Is it small or large?", "And its size?"),
            it.size.capitalize(),
        ),
        "place": (("Where is it?", "And where is it?"), at(it.place).capitalize()),
        "shape": (("What shape is it?", "And what shape is it?"), article(it.shape).capitalize()),
    }
    kinds.pop(before.kind, None)
    guess = rng.choice(list(COLOURS)) if rng.random() < 0.5 else it.colour
    kinds["yesno"] = ((f"Is it {guess}?",), "Yes" if guess == it.colour else "No")
    kind = rng.choice(list(kinds))
    questions, answer = kinds[kind]
    return Turn(kind, rng.choice(questions), answer, about=it)


def about_two(scenes: tuple[Scene, Scene], rng: Random) -> Turn | None:
    """Return a question that compares both pictures, or one about the first or the second. None: try again."""
    if rng.random() < 0.3:
        return _which_picture(scenes, rng)
    index = rng.randrange(2)
    kind = rng.choice(("shape", "colour", "count", "read", "read", "yesno", "place", "size", "describe"))
    turn = ask(scenes[index], kind, rng)
    if turn is None or "in the picture" in turn.question:
        return None
    where = f"in the {ORDINALS[index]} picture"
    if kind == "describe":
        question = rng.choice(
            (f"Describe the {ORDINALS[index]} picture.", f"What is {where}?", f"What do you see {where}?")
        )
    else:
        question = f"{turn.question[:-1]} {where}{turn.question[-1]}"
    return Turn(kind, question, turn.answer, about=turn.about)


def _which_picture(scenes: tuple[Scene, Scene], rng: Random) -> Turn | None:
    things = [{s.shape for s in scene.shapes} | {f"{s.colour} {s.shape}" for s in scene.shapes} for scene in scenes]
    for scene, known in zip(scenes, things, strict=True):
        if scene.text:
            known.add(scene.text.kind)
    if rng.random() < 0.4:
        counts = [len(scene.shapes) for scene in scenes]
        if counts[0] == counts[1]:
            return None
        return Turn("which", "Which picture has more shapes?", f"The {ORDINALS[counts[1] > counts[0]]} one")
    index = rng.randrange(2)
    only = sorted(things[index] - things[1 - index])
    if not only:
        return None
    thing = article(rng.choice(only))
    question = rng.choice(
        (f"Which picture shows {thing}?", f"In which picture do you see {thing}?", f"Which picture has {thing}?")
    )
    return Turn("which", question, f"The {ORDINALS[index]} one")


def no_picture(rng: Random) -> Turn:
    """Return a turn without a picture, in which iota asks for one or says what it is."""
    if rng.random() < 0.3:
        question = rng.choice(("Who are you?", "What are you?", "What can you do?"))
        return Turn("none", question, "I am iota, a small model that looks at pictures.")
    greeting = rng.choice(("Hello", "Hi", "Hello!", "Hi there", "Good morning", "Can you help me?", "Tell me a story."))
    scene = Scene((Shape(rng.choice(SHAPES), "red", "large", "top left"),))
    turn = ask(scene, rng.choice(("describe", "shape", "colour", "count")), rng)
    question = turn.question if turn and rng.random() < 0.6 else greeting
    return Turn("none", question, "Show me a picture.")


WEIGHTS = {"describe": 1, "shape": 2, "colour": 2, "size": 2, "place": 2, "count": 3, "yesno": 4, "read": 8}


def conversation(
    scenes: tuple[Scene, ...], rng: Random, turns: int, shares: Mapping[str, float] = WEIGHTS
) -> list[Turn]:
    """Return at most `turns` turns about one picture or two, with follow-ups and without repeated questions.

    Of two pictures, the second is shown in the first turn or later. Questions then name a picture by its number.
    """
    history: list[Turn] = []
    questions: set[str] = set()
    late = len(scenes) == 2 and rng.random() < 0.35
    second_at = rng.randint(1, max(1, turns // 2)) if late else 0
    kinds = list(shares)
    weights = [shares[k] for k in kinds]
    for _ in range(turns * 6):
        if len(history) >= turns:
            break
        one_shown = len(scenes) == 1 or (late and len(history) < second_at)
        turn: Turn | None
        if history and rng.random() < 0.3:
            turn = follow_up(history[-1], rng)
            if turn and history[-1].question == turn.question:
                continue
        elif one_shown:
            turn = ask(scenes[0], rng.choices(kinds, weights)[0], rng)
            if turn and turn.question in questions:
                continue
        elif late and len(history) == second_at and rng.random() < 0.5:
            turn = ask(scenes[1], rng.choices(kinds, weights)[0], rng)
        else:
            turn = about_two((scenes[0], scenes[1]), rng)
            if turn and turn.question in questions:
                continue
        if turn is None:
            continue
        pictures: tuple[int, ...] = ()
        if not history:
            pictures = (0,) if len(scenes) == 1 or late else (0, 1)
        elif late and len(history) == second_at:
            pictures = (1,)
        questions.add(turn.question)
        history.append(Turn(turn.kind, turn.question, turn.answer, pictures, turn.about))
    return history
