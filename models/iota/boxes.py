"""Boxes as Qwen3-VL writes them: `[{"bbox_2d": [x1, y1, x2, y2], "label": "red circle"}]`, 0 to 1000 along each axis.

Coordinates are multiples of ten, as finer ones are below what one tile of 96 pixels shows. Boxes are in reading order,
and `[]` is the answer where nothing is. A label is what was asked for in the singular; of all shapes, each is named.
"""

from __future__ import annotations

import json
from random import Random

from .absent import missing, some_thing
from .printing import Area
from .scenes import Scene, Shape
from .turn import Turn
from .words import plural

STEP = 10
QUESTION = "Locate {thing} in the picture, report the box coordinates in JSON."
_OTHERS = (
    "Locate {thing}, report the box coordinates in JSON.",
    "Locate {thing}, report bbox coordinates in JSON format.",
    "Locate {thing}, output the bounding boxes in JSON.",
    "Detect {thing} in the picture and give the boxes in JSON.",
    "Find {thing}. Answer with boxes in JSON.",
    "Where is {thing}? Answer with boxes in JSON.",
)


def ask_boxes(scene: Scene, rng: Random) -> Turn | None:
    """Return a question for the boxes of one thing, of all of a kind, or of something that is not there."""
    if not scene.boxes:
        return None
    chance = rng.random()
    if chance < 0.17:
        thing = some_thing(rng) if rng.random() < 0.35 else missing(scene, rng)
        return _turn(_the(thing, rng), "[]", rng)
    if scene.text and (not scene.shapes or chance < 0.45):
        return _ask_text(scene, rng)
    if not scene.shapes:
        return None
    boxes = list(zip(scene.shapes, scene.boxes, strict=False))
    if chance < 0.27:
        answer = written([(named(shape), box) for shape, box in boxes])
        return _turn(rng.choice(("all shapes", "every shape", "each shape", "all objects")), answer, rng)
    shape = rng.choice(scene.shapes)
    if chance < 0.34:
        wanted = [(named(s), box) for s, box in boxes if s.colour == shape.colour]
        return _turn(rng.choice((f"all {shape.colour} shapes", f"every {shape.colour} shape")), written(wanted), rng)
    label = named(shape) if rng.random() < 0.65 else shape.shape
    wanted = [(label, box) for s, box in boxes if label in (named(s), s.shape)]
    return _turn(_the(label, rng, several=len(wanted) > 1), written(wanted), rng)


def named(shape: Shape) -> str:
    return f"{shape.colour} {shape.shape}"


def written(boxes: list[tuple[str, Area]]) -> str:
    """Return labelled boxes, given in fractions of the picture, as JSON."""
    steps = 1000 // STEP
    return json.dumps(
        [{"bbox_2d": [STEP * round(edge * steps) for edge in box], "label": label} for label, box in boxes]
    )


def _ask_text(scene: Scene, rng: Random) -> Turn:
    assert scene.text is not None
    kind = scene.text.kind
    label = f"{kind} {scene.text.text}" if kind in ("word", "number") and rng.random() < 0.4 else kind
    things = (f"the {label}", label) if rng.random() < 0.8 or label != kind else ("the text",)
    label = label if things[0] != "the text" else "text"
    return _turn(rng.choice(things), written([(label, scene.boxes[-1])]), rng)


def _the(name: str, rng: Random, several: bool = False) -> str:
    words = name.split()
    last = plural(words[-1])
    some = " ".join((*words[:-1], last))
    forms = [f"every {name}", f"all {some}"]
    if not several:
        forms = [*[f"the {name}"] * 4, name, f"a {name}".replace("a orange", "an orange"), *forms]
    return rng.choice(forms)


def _turn(thing: str, answer: str, rng: Random) -> Turn:
    form = QUESTION if rng.random() < 0.5 else rng.choice(_OTHERS)
    return Turn("boxes", form.format(thing=thing), answer)
