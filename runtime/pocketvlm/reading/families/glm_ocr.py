"""GLM-OCR: text, tables (HTML) and formulas (LaTeX) by fixed prompts.

Prompts and the limit of 8192 tokens: https://huggingface.co/zai-org/GLM-OCR (README). The authors' pipeline cuts a page
into regions first; here one prompt reads the whole page.
"""

import re

from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "glm-ocr",
    "Text Recognition:",
    names=re.compile(r"glm[-_ ]?ocr"),
    max_tokens=8192,
)
