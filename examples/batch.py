"""Ask about every PNG in a folder and write a line of JSON for each: python examples/batch.py FOLDER

`pocketvlm batch` does the same on the command line, and can be stopped and resumed.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pocketvlm import VLM, PocketVLMError

PARALLEL = 2


def ask(vlm: VLM, path: Path) -> dict[str, str]:
    content = [{"type": "image", "path": path}, {"type": "text", "text": "What is in the picture?"}]
    try:
        return {"file": path.name, "answer": vlm.chat([{"role": "user", "content": content}]).text}
    except PocketVLMError as error:  # e.g. a file that is not a picture
        return {"file": path.name, "error": str(error)}


pictures = sorted(Path(sys.argv[1]).glob("*.png"))
with VLM.load(parallel=PARALLEL) as vlm, ThreadPoolExecutor(PARALLEL) as threads:
    for line in threads.map(lambda path: ask(vlm, path), pictures):
        print(json.dumps(line))
