"""Gemma 3 and Gemma 4: JSON with y before x, in thousandths of the picture.

Source: https://ai.google.dev/gemma/docs/capabilities/vision (object detection). Gemma 3 was not trained on it as a task
of its own, and places are coarse.
"""

from pocketvlm.regions.answer_schemas import THOUSANDTHS, list_of_boxes
from pocketvlm.regions.json_places import Keys, json_places
from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "gemma",
    json_places(Keys(("box_2d",), ("point",))),
    scale=1000,
    y_first=True,
    question="Detect {thing} in the picture. Answer with a JSON list with box_2d and label for each.",
    schema=list_of_boxes("box_2d", THOUSANDTHS),
    vision_families=("gemma3", "gemma4"),
)
