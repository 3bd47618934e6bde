"""Get an instance of a class: python examples/structured.py [PICTURE]"""

import sys

from pydantic import BaseModel, Field

from pocketvlm import VLM


class Shapes(BaseModel):
    count: int = Field(ge=0, le=9)


picture = sys.argv[1] if len(sys.argv) > 1 else "docs/sample.png"

with VLM.load() as vlm:
    shapes = vlm.ask("How many shapes are there?", picture, response_format=Shapes)
print(shapes.count)
