"""Things that are in none of iota's pictures, for questions that have to be answered with no, or with no box."""

from __future__ import annotations

from random import Random

from .scenes import COLOURS, SHAPES, Scene
from .turn import Turn
from .words import article

# Words that iota reads are not among them: a picture may print "dog".
THINGS = (
    "person man woman child face hand foot eye car bike truck train plane tunnel sign bridge house window table chair "
    "bed carpet phone laptop keyboard screen camera clock watch ring bottle glass plate spoon fork knife bowl horse "
    "cow pig sheep goat mouse rabbit duck goose chicken snake frog spider bee butterfly flower rose leaf grass bush "
    "forest mountain hill river lake sea beach cloud snow fire candle shirt shoe hat coat glove bag umbrella key "
    "hammer saw ladder rope wheel engine rocket robot guitar piano drum violin banana pear lemon orange juice cherry "
    "grape carrot potato tomato onion egg cheese butter sandwich hexagon pentagon spiral arrow oval diamond logo map "
    "chart photo painting tower castle church school garden fence gate street crowd dancer doctor teacher"
).split()
HELD_OUT = THINGS[::8]  # for evaluation alone
TRAINED = tuple(thing for thing in THINGS if thing not in HELD_OUT)


def some_thing(rng: Random, things: tuple[str, ...] | list[str] = TRAINED) -> str:
    """Return a foreign thing, sometimes with a colour."""
    thing = rng.choice(things)
    return f"{rng.choice(list(COLOURS))} {thing}" if rng.random() < 0.3 else thing


def missing(scene: Scene, rng: Random) -> str:
    """Return a shape, often with a colour, that `scene` does not have but nearly has."""
    present = {s.shape for s in scene.shapes} | {f"{s.colour} {s.shape}" for s in scene.shapes}
    near = [f"{rng.choice(list(COLOURS))} {s.shape}" for s in scene.shapes]
    near += [f"{s.colour} {rng.choice(SHAPES)}" for s in scene.shapes]
    return rng.choice(sorted({*near, *SHAPES} - present))


def ask_absent(scene: Scene, rng: Random, things: tuple[str, ...] | list[str] = TRAINED) -> Turn:  # noqa: ARG001
    thing = some_thing(rng, things)
    question = rng.choice(
        (
            f"Is there {article(thing)}?",
            f"Do you see {article(thing)}?",
            f"Is there {article(thing)} in the picture?",
            f"Does the picture show {article(thing)}?",
        )
    )
    return Turn("absent", question, "No")
