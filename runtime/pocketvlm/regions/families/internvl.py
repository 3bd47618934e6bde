"""InternVL: the thing and its boxes between marks of their own, in thousandths of the picture.

Source: https://internvl.readthedocs.io/en/latest/get_started/chat_data_format.html (grounding and detection data).
"""

import re

from pocketvlm.regions.grammars import THOUSAND, bracketed
from pocketvlm.regions.marked_places import bracketed_places
from pocketvlm.regions.notation import Notation

_LABEL, _BOX = ("<ref>", "</ref>"), ("<box>", "</box>")

NOTATION = Notation(
    "internvl",
    bracketed_places(label=_LABEL, box=_BOX, polygon=("<quad>", "</quad>"), bare="double"),
    scale=1000,
    question="Please provide the bounding box coordinate of the region this sentence describes: <ref>{thing}</ref>",
    question_controls=_LABEL,
    grammar=bracketed(*_BOX, THOUSAND, label=_LABEL),
    controls=re.compile(r"</?(ref|box|quad)>"),
    vision_families=("internvl",),
)
