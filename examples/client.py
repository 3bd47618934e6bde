"""Ask a server that `pocketvlm serve` started: pip install openai; python examples/client.py [PICTURE [URL]]"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

picture = sys.argv[1] if len(sys.argv) > 1 else "docs/sample.png"
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080/v1"

client = OpenAI(base_url=url, api_key="none")  # with --api-key, the server's key
uri = "data:image/png;base64," + base64.b64encode(Path(picture).read_bytes()).decode()
content = [
    {"type": "image_url", "image_url": {"url": uri}},
    {"type": "text", "text": "What is in the picture?"},
]
stream = client.chat.completions.create(model="iota", messages=[{"role": "user", "content": content}], stream=True)
for chunk in stream:
    print(chunk.choices[0].delta.content, end="", flush=True)
print()
