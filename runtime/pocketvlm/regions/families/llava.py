"""LLaVA 1.5: four fractions in brackets, of the square that the model sees, with the bars around the picture.

Source: https://github.com/haotian-liu/LLaVA/issues/606, and the training data described there. What LLaVA-NeXT's
numbers are fractions of is not documented.
"""

from pocketvlm.regions.grammars import fractions
from pocketvlm.regions.marked_places import bracketed_places
from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "llava",
    bracketed_places(bare="fractions"),
    scale=1,
    question="Please provide the bounding box coordinate of the region this sentence describes: {thing}.",
    grammar=fractions,
    vision_families=("llava",),
)
