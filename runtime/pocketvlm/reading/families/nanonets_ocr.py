"""Nanonets-OCR2 and Nanonets-OCR: Markdown with HTML tables and LaTeX; marks for pictures, page numbers, watermarks.

Prompt and 15000 tokens: https://huggingface.co/nanonets/Nanonets-OCR2-3B (README). 2800 embeddings are an A4 page at
150 dpi.
"""

import re

from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "nanonets-ocr",
    "Extract the text from the above document as if you were reading it naturally. Return the tables in html format. "
    "Return the equations in LaTeX representation. If there is an image in the document and image caption is not "
    "present, add a small description of the image inside the <img></img> tag; otherwise, add the image caption inside "
    "<img></img>. Watermarks should be wrapped in brackets. Ex: <watermark>OFFICIAL COPY</watermark>. Page numbers "
    "should be wrapped in brackets. Ex: <page_number>14</page_number> or <page_number>9/22</page_number>. Prefer using "
    "☐ and ☑ for check boxes.",
    names=re.compile(r"nanonets[-_ ]?ocr"),
    detail="high",
    max_image_tokens=2800,
    max_tokens=15000,
)
