"""Which of the pictures that an answer lists belongs to which file. Needs node, but no browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from page.conftest import PAGE

PICTURE = {"kind": "picture"}
DOCUMENT = {"kind": "document", "pages": "2-3", "pageCount": 5}
VIDEO = {"kind": "video", "pageCount": 4}
LONG = {"kind": "video", "pageCount": 4, "frames": 10}
CASES = [
    ([PICTURE, DOCUMENT, VIDEO, PICTURE], 8, [[0], [1, 2], [3, 4, 5, 6], [7]]),
    ([PICTURE, VIDEO, PICTURE, VIDEO, PICTURE], 5, [[0], [1], [2], [3], [4]]),  # videos that are seen as one
    ([PICTURE, LONG, PICTURE], 7, [[0], [1, 2, 3, 4, 5], [6]]),  # it has five frames
    ([PICTURE, VIDEO, PICTURE, LONG, PICTURE], 9, [[0], None, None, None, [8]]),  # which is the shorter one?
    ([PICTURE, PICTURE], 3, [None, None]),
    ([DOCUMENT], 1, [None]),
]


def test_seen_by_file(tmp_path: Path) -> None:
    if shutil.which("node") is None or not (PAGE / "node_modules").is_dir():
        pytest.skip("NO page/node_modules: this part of the page is NOT tested; `make page` installs it")
    bundle = tmp_path / "seen.mjs"
    build = ["node_modules/.bin/esbuild", "src/chat/seen.ts", "--bundle", "--format=esm", f"--outfile={bundle}"]
    subprocess.run(build, cwd=PAGE, check=True, capture_output=True, timeout=120)
    script = tmp_path / "run.mjs"
    script.write_text(
        f"""import {{ seenByFile }} from "./seen.mjs";
const cases = {json.dumps([[files, list(range(total))] for files, total, _ in CASES])};
const results = cases.map(([attachments, seen]) => {{
  const known = new Map(seenByFile([{{ attachments }}], seen).map((one) => [one.attachment, one.seen]));
  return attachments.map((one) => known.get(one) ?? null);
}});
console.log(JSON.stringify(results));
"""
    )
    done = subprocess.run(["node", script], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == [expected for _, _, expected in CASES]
