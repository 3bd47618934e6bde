"""A batch on Ray Data, one machine, two actors: the lines that one engine writes. Needs the extra `ray`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("ray")
COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "batch", "--threads", "1"]


def contents(path: Path) -> list[tuple[str, int, Any]]:
    """All of it but what names one generation and its moment."""
    found = []
    for line in map(json.loads, path.read_text().splitlines()):
        body = line["response"]["body"]
        found.append((line["custom_id"], line["response"]["status_code"], body.get("choices", body.get("error"))))
    return found


def test_two_actors_write_the_same(sample_png: Path, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    picture = Image.open(sample_png).convert("RGB")
    for number in range(24):
        picture.putpixel((number, 0), (number, 0, 0))
        picture.save(album / f"{number:02}.png", compress_level=1)
    (album / "broken.png").write_bytes(b"nothing")
    # Ray's own processes talk to each other over this machine's address, which the tests' block of the network forbids.
    paths = os.environ["PYTHONPATH"].split(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if not path.endswith("offline"))}

    def answered(output: Path, *options: str) -> list[tuple[str, int, Any]]:
        command = [*COMMAND, str(album), "--prompt", "How many shapes are there?", "-o", str(output), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
        assert done.returncode == 1, done.stderr  # one of them is an error
        return contents(output)

    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    alone = answered(one)
    two.write_text(one.read_text().partition("\n")[0] + "\n")  # done before
    assert answered(two, "--ray-actors", "2") == alone
    assert [status for _, status, _ in alone] == [200] * 24 + [400]
