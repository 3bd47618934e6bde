"""Print the pictures in which something is, the surest first: python examples/decide.py QUESTION PICTURE..."""

import sys

from pocketvlm import VLM

question, *pictures = sys.argv[1:]
ranked = []
with VLM.load() as vlm:
    for picture in pictures:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        decision = vlm.decide([{"role": "user", "content": content}], yes_no=True)
        ranked.append((decision.probability, picture))
for probability, picture in sorted(ranked, reverse=True):
    if probability >= 0.8:
        print(f"{probability:.2f} {picture}")
