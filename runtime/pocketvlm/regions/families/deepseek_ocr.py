"""DeepSeek-OCR: label and boxes between control tokens, in 999ths of the picture.

Source: https://github.com/deepseek-ai/DeepSeek-OCR (config.py and run_dpsk_ocr_image.py). It has no chat template.
"""

import re

from pocketvlm.regions.grammars import BELOW_THOUSAND, bracketed
from pocketvlm.regions.marked_places import bracketed_places
from pocketvlm.regions.notation import Notation

_LABEL, _BOX = ("<|ref|>", "<|/ref|>"), ("<|det|>", "<|/det|>")

NOTATION = Notation(
    "deepseek-ocr",
    bracketed_places(label=_LABEL, box=_BOX),
    scale=999,
    question="\nLocate <|ref|>{thing}<|/ref|> in the image.",
    question_controls=_LABEL,
    grammar=bracketed(*_BOX, BELOW_THOUSAND, label=_LABEL),
    controls=re.compile(r"<\|/?(ref|det)\|>"),
    raw=True,
    names=re.compile(r"deepseek[-_ ]?ocr"),
    mark="<|det|>",
)
