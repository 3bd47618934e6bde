"""LFM2.5-VL and LFM2-VL: JSON with numbers from 0 to 1.

Question: https://huggingface.co/LiquidAI/LFM2.5-VL-450M (model card, on visual grounding).
"""

from pocketvlm.regions.answer_schemas import FRACTIONS, list_of_boxes
from pocketvlm.regions.json_places import Keys, json_places
from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "lfm2-vl",
    json_places(Keys(("bbox",))),
    scale=1,
    question='Detect all instances of: {thing}. Response must be a JSON array: [{"label": ..., "bbox": [x1, y1, x2, '
    "y2]}, ...]. Coordinates are normalized to [0,1].",
    schema=list_of_boxes("bbox", FRACTIONS, label_first=True),
    vision_families=("lfm2_vl",),
)
