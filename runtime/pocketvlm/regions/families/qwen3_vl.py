"""Qwen3-VL and Qwen3.5: JSON, in thousandths of the picture.

Source: https://github.com/QwenLM/Qwen3-VL (cookbooks/2d_grounding.ipynb).
"""

from pocketvlm.regions.answer_schemas import THOUSANDTHS, list_of_boxes
from pocketvlm.regions.json_places import Keys, json_places
from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "qwen3-vl",
    json_places(Keys(("bbox_2d",), ("point_2d",), ("polygon_2d",))),
    scale=1000,
    question="Locate {thing} in the picture, report the box coordinates in JSON.",
    schema=list_of_boxes("bbox_2d", THOUSANDTHS),
    vision_families=("qwen3_vl", "qwen3_5"),
)
