"""PaliGemma and PaliGemma 2: four tokens of 1024 places each before the label, y before x.

Source: https://ai.google.dev/gemma/docs/paligemma/prompt-system-instructions (detect).
"""

import re

from pocketvlm.regions.grammars import located
from pocketvlm.regions.marked_places import token_places
from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "paligemma",
    token_places,
    scale=1024,
    y_first=True,
    question="detect {thing}",
    grammar=located,
    controls=re.compile(r"<(loc\d{4}|seg\d{3})>"),
    names=re.compile(r"paligemma"),
    mark="<loc0000>",
)
