"""olmOCR 2: Markdown with HTML tables and LaTeX, below a front matter about the page.

Prompt, temperature and a longest edge of 1288 pixels: https://github.com/allenai/olmocr (prompts.py, pipeline.py). An
A4 page of that height is 1518 embeddings.
"""

import re

from pocketvlm.reading.notation import markup
from pocketvlm.reading.preset import Preset

_FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(?:[a-z_]{1,40}:[^\n]{0,200}\n){0,20}---[ \t]*(?:\n|$)")


def _without_front_matter(text: str) -> str:
    match = _FRONT_MATTER.match(text)
    return markup.markdown(text[match.end() :] if match else text)


PRESET = Preset(
    "olmocr",
    "Attached is one page of a document that you must process. Just return the plain text representation of this "
    "document as if you were reading it naturally. Convert equations to LateX and tables to HTML.\n"
    "If there are any figures or charts, label them with the following markdown syntax ![Alt text describing the "
    "contents of the figure](page_startx_starty_width_height.png)\n"
    "Return your output as markdown, with a front matter section on top specifying values for the primary_language, "
    "is_rotation_valid, rotation_correction, is_table, and is_diagram parameters.",
    names=re.compile(r"olm[-_ ]?ocr"),
    detail="high",
    max_image_tokens=1518,
    max_tokens=8000,
    fields={"temperature": 0.1, "seed": 0},
    to_markdown=_without_front_matter,
)
