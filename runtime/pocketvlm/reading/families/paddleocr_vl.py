"""PaddleOCR-VL: `OCR:` for text; tables come in OTSL.

Prompts: https://huggingface.co/PaddlePaddle/PaddleOCR-VL (README), where others are `Table Recognition:`,
`Formula Recognition:` and `Chart Recognition:`. The model was trained on regions that a layout detector finds; without
one it reads a page as one region, best a simple one.
"""

import re

from pocketvlm.reading.notation import markup
from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "paddleocr-vl",
    "OCR:",
    names=re.compile(r"paddle[-_ ]?ocr[-_ ]?vl"),
    max_tokens=4096,
    fields={"skip_special_tokens": False},
    to_markdown=markup.otsl,
)
