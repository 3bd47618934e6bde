"""Get JSON that is valid for a schema: python examples/structured.py [PICTURE]"""

import json
import sys

from pocketvlm import VLM

picture = sys.argv[1] if len(sys.argv) > 1 else "docs/sample.png"
schema = {
    "type": "object",
    "properties": {"shapes": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["shapes"],
    "additionalProperties": False,
}
question = [
    {"type": "image_url", "image_url": {"url": picture}},
    {"type": "text", "text": "How many shapes are there?"},
]

with VLM.load() as vlm:
    completion = vlm.chat(
        [{"role": "user", "content": question}],
        response_format={"type": "json_schema", "json_schema": {"name": "picture", "schema": schema}},
    )
print(json.loads(completion.text))
