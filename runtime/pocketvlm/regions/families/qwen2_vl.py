"""Qwen2-VL: pairs of thousandths of the picture between control tokens, after the thing between others.

Source: https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct (tokenizer_config.json), and the model's report,
https://arxiv.org/abs/2409.12191, section 2.2.
"""

import re

from pocketvlm.regions.grammars import THOUSAND, paired
from pocketvlm.regions.marked_places import paired_places
from pocketvlm.regions.notation import Notation

_LABEL = ("<|object_ref_start|>", "<|object_ref_end|>")
_BOX = ("<|box_start|>", "<|box_end|>")

NOTATION = Notation(
    "qwen2-vl",
    paired_places(label=_LABEL, box=_BOX, polygon=("<|quad_start|>", "<|quad_end|>")),
    scale=1000,
    question="Detect the bounding box of {thing}.",
    grammar=paired(_BOX, THOUSAND, label=_LABEL),
    controls=re.compile(r"<\|(object_ref|box|quad)_(start|end)\|>"),
    vision_families=("qwen2_vl",),
)
