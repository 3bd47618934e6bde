"""Answers by a schema: a JSON object with the keys that the question names, in its order."""

from __future__ import annotations

import json
from random import Random

from .scenes import Scene
from .turn import Turn
from .words import at


def ask_record(scene: Scene, rng: Random) -> Turn | None:
    """Return a question for some properties of a shape, of the printed text or of the whole picture."""
    chance = rng.random()
    subject: dict[str, str | int]
    if scene.shapes and chance < 0.6:
        shape = rng.choice(scene.shapes)
        what = "the shape" if len(scene.shapes) == 1 else f"the shape {at(shape.place)}"
        subject = {"shape": shape.shape, "colour": shape.colour, "size": shape.size, "place": shape.place}
    elif scene.text and scene.text.kind in ("word", "number") and chance < 0.85:
        text = scene.text
        value = int(text.text) if text.kind == "number" else text.text
        what, subject = f"the {text.kind}", {text.kind: value, "colour": text.colour, "place": text.place}
    else:
        what = "the picture"
        subject = {"shapes": len(scene.shapes), "text": scene.text.kind if scene.text else "none"}
    keys = rng.sample(list(subject), rng.randint(1, len(subject)))
    question = rng.choice(
        (
            f"Describe {what} as JSON with the keys {', '.join(keys)}.",
            f"Describe {what} as a JSON object: {', '.join(keys)}.",
            f"Answer in JSON with {', '.join(keys)} of {what}.",
        )
    )
    return Turn("record", question, json.dumps({key: subject[key] for key in keys}))
