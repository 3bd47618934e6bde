"""LightOnOCR: the page alone, without any text, gives Markdown with HTML tables and LaTeX.

Source: https://github.com/lightonai/LightOnOCR (README): pages with a longest edge of 1540 pixels for most versions, a
temperature of 0.1 instead of greedy decoding, 4096 tokens in the examples of the model cards. The seed is fixed, so
that a page gives the same text again.
"""

import re

from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "lightonocr",
    "",
    names=re.compile(r"lighton[-_ ]?ocr"),
    detail="high",
    max_tokens=4096,
    fields={"temperature": 0.1, "seed": 0},
)
