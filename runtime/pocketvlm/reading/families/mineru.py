"""MinerU2.5: text of a region; tables in OTSL.

Prompt and penalties: https://github.com/opendatalab/mineru-vl-utils (mineru_client.py). Its authors read a page in two
steps: `Layout Detection:` on the page at 1036x1036 pixels, then one prompt for each region that this finds. Here the
page is one region, which is enough for letters, but loses the order of columns and the formulas of dense pages. 2800
embeddings are an A4 page at 150 dpi.
"""

import re

from pocketvlm.reading.notation import markup
from pocketvlm.reading.preset import Preset

PRESET = Preset(
    "mineru",
    "\nText Recognition:",
    names=re.compile(r"mineru"),
    detail="high",
    max_image_tokens=2800,
    max_tokens=4096,
    fields={"skip_special_tokens": False, "presence_penalty": 1.0, "frequency_penalty": 0.05},
    to_markdown=markup.otsl,
)
