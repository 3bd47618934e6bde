"""Draw the pages of tests/drawn_pages.py with Poppler, which is no part of the tests, and keep their mean colours.

    PYTHONPATH=tests python tests/golden/draw.py       # needs pdftoppm (poppler-utils)

The file is from pdftoppm 22.12.0. A line has the size of the page in points, and the mean colours of six rows of six
fields in hex.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from drawn_pages import drawn_pages, fields

GOLDEN = Path(__file__).parent / "drawn_pages.json"


def draw(data: bytes, folder: Path) -> Image.Image:
    """Return a page as Poppler shows it, a pixel for each point."""
    (folder / "page.pdf").write_bytes(data)
    command = ["pdftoppm", "-r", "72", "-cropbox", "-png", "-singlefile", "page.pdf", "page"]
    subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return Image.open(folder / "page.png").convert("RGB")


def main() -> None:
    drawn = {}
    with TemporaryDirectory() as folder:
        for name, data in drawn_pages().items():
            page = draw(data, Path(folder))
            rows = [bytes(row.round().astype(np.uint8)).hex() for row in fields(np.asarray(page))]
            drawn[name] = {"size": page.size, "rows": rows}
    lines = (f"{json.dumps(name)}: {json.dumps(page)}" for name, page in drawn.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
