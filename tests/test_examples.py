"""The examples that need no server run as they are. The clients run in tests/server/test_docs.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pages import ROOT, name_of

EXAMPLES = ROOT / "examples"
ANSWER = (
    "A large red circle at the top left, a small blue star at the top right and the number 42 in green at the bottom."
)


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chat() -> None:
    assert run("chat.py").splitlines() == [ANSWER, "2"]


def test_structured(sample_png: Path) -> None:
    assert run("structured.py", str(sample_png)) == "2\n"


def test_batch(tmp_path: Path, sample_png: Path) -> None:
    shutil.copy(sample_png, tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"not a picture")
    broken, answer = map(json.loads, run("batch.py", str(tmp_path)).splitlines())
    assert "not a picture" in broken["error"]
    assert answer == {"file": "b.png", "answer": ANSWER}


def test_decide(sample_png: Path) -> None:
    probability, picture = run("decide.py", "Is there a red circle?", str(sample_png)).split()
    assert 0.8 <= float(probability) <= 1
    assert picture == str(sample_png)
    assert run("decide.py", "Is there a yellow square?", str(sample_png)) == ""


def test_read(tmp_path: Path, sample_png: Path) -> None:
    with Image.open(sample_png) as picture:
        page = picture.convert("RGB")
    page.save(tmp_path / "scan.pdf", save_all=True, append_images=[page])
    assert run("read.py", str(tmp_path / "scan.pdf")).splitlines() == [f"Page 1: {ANSWER}", f"Page 2: {ANSWER}"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=name_of)
def test_the_site_shows_it(path: Path) -> None:
    # Not in one line, which ruff would format as Python.
    assert f"--8<--\n{name_of(path)}\n--8<--" in (ROOT / "docs" / "examples.md").read_text("utf-8")
