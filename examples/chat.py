"""Ask about a picture, then ask more about it: python examples/chat.py [PICTURE]"""

import sys

from pocketvlm import VLM

picture = sys.argv[1] if len(sys.argv) > 1 else "docs/sample.png"
messages = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": "What is in the picture?"},
        ],
    }
]

with VLM.load() as vlm:  # iota; VLM.load("smolvlm-500m") loads a model that you pulled
    answer = ""
    for chunk in vlm.stream(messages):
        print(chunk.text, end="", flush=True)
        answer += chunk.text
    print()

    # The second turn reuses the KV cache: the picture is not encoded again.
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "How many shapes are there?"}]
    print(vlm.chat(messages).text)
