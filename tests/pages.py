"""The pages of the documentation, their code blocks, and how the tests run these.

Every block runs, except after a comment `<!-- not run: reason -->`. Languages: `sh` (commands), `console` (commands
after `$ `, and exactly what they print), `python` and `js`. Blocks of a page run in order, in one folder; Python blocks
share their variables.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(
    r"^(?P<skip> *<!-- not run: [^\n]+ -->\n)?^ *```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE
)
_RUNNABLE = ("sh", "console", "python", "js")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    run: bool

    @property
    def commands(self) -> list[str]:
        """The shell commands, continued lines joined."""
        if self.language not in ("sh", "console"):
            return []
        lines = self.code.replace("\\\n", " ").splitlines()
        if self.language == "sh":
            return [line for line in lines if line.strip()]
        return [line[2:] for line in lines if line.startswith(("$ ", "# "))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    for block in _BLOCK.finditer(page.read_text("utf-8")):
        yield Block(block["language"], block["code"], block["skip"] is None)


def runnable(page: Path) -> list[Block]:
    """Return the blocks to run. A block that includes a file of `examples/` is run by tests/test_examples.py."""
    included = "--8<--"
    return [
        block
        for block in blocks(page)
        if block.run and block.language in _RUNNABLE and not block.code.startswith(included)
    ]


def furnish(folder: Path) -> None:
    """Put what the pages mention into `folder`: pictures, a bundle, and the parts of a checkout."""
    for name in ("docs", "examples", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my-bundle").symlink_to(str(files("pocketvlm_models") / "iota"))
    (folder / "photos").mkdir()
    with Image.open(ROOT / "docs" / "sample.png") as picture:
        for name in ("photo.jpg", "photos/first.jpg", "old.png", "new.png"):
            picture.convert("RGB").save(folder / name)
        pages = [picture.convert("RGB")] * 3
        pages[0].save(folder / "scan.pdf", save_all=True, append_images=pages[1:])
        write_video(folder / "clip.mp4", pages[0])


def write_video(path: Path, picture: Image.Image) -> None:
    """Write a video of two seconds that shows a picture."""
    import av

    with av.open(path, "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *picture.size, "yuv420p", 4_000_000
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def run(page_blocks: list[Block], folder: Path, base_url: str | None = None) -> str:
    """Run blocks in `folder`, and return what they print. `base_url` replaces the address of the server on the page."""
    address = "http://127.0.0.1:8080"
    shown = [
        {"language": block.language, "code": block.code.replace(address, base_url or address)} for block in page_blocks
    ]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(folder),
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "0",  # it would forbid huggingface_hub even loopback
    }
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        cwd=folder,
        env=environment,
        input=json.dumps(shown),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


_DRIVER = r"""
import json, subprocess, sys

def shell(command):
    print("$", command, flush=True)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {command}")
    return done.stdout

def transcript(code):
    command, expected = None, []
    for line in [*code.splitlines(), "$ "]:
        if not line.startswith("$ "):
            expected.append(line)
            continue
        if command is not None and (printed := shell(command).rstrip().splitlines()) != expected:
            sys.exit("expected " + repr(expected) + ", not " + repr(printed))
        command, expected = line[2:], []

names = {"__name__": "__main__"}
for number, block in enumerate(json.load(sys.stdin)):
    if block["language"] == "python":
        exec(compile(block["code"], f"block {number}", "exec"), names)
    elif block["language"] == "console":
        transcript(block["code"])
    elif block["language"] == "js":
        with open(f"block{number}.mjs", "w") as file:
            file.write(block["code"])
        shell(f"node block{number}.mjs")
    else:
        shell(block["code"])
"""
