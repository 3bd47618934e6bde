"""HunyuanOCR: each text with the corners of its box behind it, in thousandths of the picture.

Source: https://github.com/Tencent-Hunyuan/HunyuanOCR (README, "Application-oriented Prompts", on spotting).
"""

import re

from pocketvlm.regions.grammars import THOUSAND, paired
from pocketvlm.regions.marked_places import paired_places
from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "hunyuanocr",
    paired_places(label_before=True),
    scale=1000,
    question="Detect and recognize text in the image, and output the text coordinates in a formatted manner.",
    reads_all=True,
    grammar=paired(None, THOUSAND),
    names=re.compile(r"hunyuan[-_ ]?ocr"),
)
