"""Qwen2.5-VL: JSON, in pixels of the resized picture.

Source: https://github.com/QwenLM/Qwen3-VL (cookbooks/spatial_understanding.ipynb of the branch for 2.5).
"""

from pocketvlm.regions.answer_schemas import PIXELS, list_of_boxes
from pocketvlm.regions.json_places import Keys, json_places
from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "qwen2.5-vl",
    json_places(Keys(("bbox_2d",), ("point_2d",), ("polygon_2d",))),
    scale=None,
    question="Locate {thing} in the picture, report the box coordinates in JSON.",
    schema=list_of_boxes("bbox_2d", PIXELS),
    vision_families=("qwen2_5_vl",),
)
