"""HunyuanOCR: Markdown with HTML tables and LaTeX.

Prompts and 16384 tokens: https://github.com/Tencent-Hunyuan/HunyuanOCR (README, "Application-oriented Prompts"). The
model leaves out the headers and footers of pages.
"""

import re

from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "hunyuanocr",
    "Extract all information from the main body of the document image and represent it in markdown format, ignoring "
    "headers and footers. Tables should be expressed in HTML format, formulas in the document should be represented "
    "using LaTeX format, and the parsing should be organized according to the reading order.",
    names=re.compile(r"hunyuan[-_ ]?ocr"),
    schema_prompt="Extract the content of the fields: [{fields}] from the image and return it in JSON format.",
    max_tokens=16384,
)
