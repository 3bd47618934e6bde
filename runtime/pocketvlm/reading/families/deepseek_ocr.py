"""DeepSeek-OCR: Markdown in which each block follows its label and place, tables in HTML.

Prompt and 8192 tokens: https://github.com/deepseek-ai/DeepSeek-OCR (README). Labels and places are taken out as by
run_dpsk_ocr_image.py there. The model has no chat template.
"""

import re

from pocketvlm.reading.notation import markup
from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "deepseek-ocr",
    "<|grounding|>Convert the document to markdown.",
    names=re.compile(r"deepseek[-_ ]?ocr"),
    mark="<|grounding|>",
    max_tokens=8192,
    raw=True,
    fields={"skip_special_tokens": False},
    to_markdown=markup.grounded,
)
