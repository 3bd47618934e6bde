"""Granite-Docling and its ancestor SmolDocling: DocTags, written with control tokens.

Prompt, 8192 tokens and the end of a page: docling's specification of the model (docling/datamodel/vlm_model_specs.py in
https://github.com/docling-project/docling). The model was trained on pictures enlarged to its full size.
"""

import re

from pocketvlm.reading.notation import doctags
from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "granite-docling",
    "Convert this page to docling.",
    names=re.compile(r"(granite|smol)[-_ ]?docling"),
    mark="<otsl>",
    detail="high",
    max_tokens=8192,
    fields={"skip_special_tokens": False, "stop": ("</doctag>",)},
    to_markdown=doctags.markdown,
)
