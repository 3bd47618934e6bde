"""Print what is on the pages of a PDF or a scan: python examples/read.py FILE

`pocketvlm read` writes it into a file, and can be stopped and resumed.
"""

import sys

from pocketvlm import VLM, read

with VLM.load() as vlm:
    for page in read(sys.argv[1], vlm):
        print(f"{page.title}: {page.text if page.error is None else page.error}")
