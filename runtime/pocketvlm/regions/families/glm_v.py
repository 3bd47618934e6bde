"""GLM-4.1V, GLM-4.5V and GLM-4.6V: lists of numbers in thousandths of the picture between two marks, or JSON.

Brackets of all kinds are used: https://huggingface.co/zai-org/GLM-4.5V (model card, on grounding). The marks stand
around every final answer, so four numbers between them are a place, and fewer are not.
"""

import re

from pocketvlm.regions.grammars import THOUSAND, bracketed
from pocketvlm.regions.json_places import Keys, json_places
from pocketvlm.regions.marked_places import bracketed_places
from pocketvlm.regions.notation import Notation
from pocketvlm.regions.place import Place

_BOX = ("<|begin_of_box|>", "<|end_of_box|>")
_json = json_places(Keys(("bbox_2d",), ("point_2d",)))
_bracketed = bracketed_places(box=_BOX, bare="double")


def _read(text: str) -> list[Place]:
    return _json(text) or _bracketed(text)


NOTATION = Notation(
    "glm-v",
    _read,
    scale=1000,
    question="Where is {thing} in the picture? Give its coordinates in the form [[x1,y1,x2,y2]].",
    grammar=bracketed(*_BOX, THOUSAND),
    controls=re.compile(r"<\|(begin|end)_of_box\|>"),
    vision_families=("glm4v",),
)
