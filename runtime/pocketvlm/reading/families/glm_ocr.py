"""GLM-OCR: text, tables (HTML) and formulas (LaTeX) by fixed prompts.

Prompts and the limit of 8192 tokens: https://huggingface.co/zai-org/GLM-OCR (README). The authors' pipeline cuts a page
into regions first; here one prompt reads the whole page. 2800 embeddings are an A4 page at 150 dpi; their pipeline
draws it at 200, which would take twice the time.
"""

import re

from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "glm-ocr",
    "Text Recognition:",
    names=re.compile(r"glm[-_ ]?ocr"),
    detail="high",
    max_image_tokens=2800,
    max_tokens=8192,
)
