"""A day with a folder of photos: stopped, changed and repaired, `pocketvlm batch` answers every photo once."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

pillow_heif = pytest.importorskip("pillow_heif")
COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "batch", "--threads", "1"]
OTHERS = "<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


class Day:
    """The folder, and the command that is run in it again and again."""

    def __init__(self, folder: Path) -> None:
        self.photos = folder / "photos"
        self.record, self.table = folder / "answers.jsonl", folder / "answers.csv"
        self._command = [*COMMAND, str(self.photos), "--prompt", "What is in the picture?", "--max-tokens", "3"]
        self._command += ["-o", str(self.table), "--sidecar", "xmp"]
        self._hidden = folder / "hidden"  # where the package for HEIC is one that cannot be imported
        self._hidden.mkdir()
        (self._hidden / "pillow_heif.py").write_text("raise ImportError('not installed')")
        self._environment = {**os.environ, "PYTHONPATH": f"{self._hidden}{os.pathsep}{os.environ['PYTHONPATH']}"}

    def install_heif(self) -> None:
        (self._hidden / "pillow_heif.py").unlink()

    def photo(self, name: str, colour: tuple[int, int, int]) -> None:
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".heic":
            pillow_heif.from_pillow(Image.new("RGB", (32, 32), colour)).save(path)
        else:
            Image.new("RGB", (32, 32), colour).save(path, quality=95)

    def run(self) -> tuple[int, str]:
        done = subprocess.run(
            self._command, env=self._environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    def stop(self, number: signal.Signals, answers: int) -> None:
        """Run until there are so many lines more, and then stop it."""
        before = len(self.lines())
        process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while self.record_size() < before + answers and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -number), printed
        assert "Traceback" not in printed
        assert before + answers <= len(self.lines()) < self.count()

    def record_size(self) -> int:
        return self.record.read_bytes().count(b"\n") if self.record.exists() else 0

    def lines(self) -> dict[str, dict[str, object]]:
        """The whole lines of the record by custom_id: none is there twice."""
        data = self.record.read_bytes() if self.record.exists() else b""
        lines = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
        counts = Counter(line["custom_id"] for line in lines)
        assert set(counts.values()) <= {1}, counts.most_common(3)
        return {line["custom_id"]: line for line in lines}

    def names(self) -> list[str]:
        kinds = (".png", ".jpg", ".heic")
        paths = sorted(path for path in self.photos.rglob("*") if path.suffix in kinds)
        return [path.relative_to(self.photos).as_posix() for path in paths if ".trash" not in path.parts]

    def count(self) -> int:
        return len(self.names())

    def rows(self) -> list[dict[str, str]]:
        data = self.table.read_bytes()
        assert data.startswith(b"\xef\xbb\xbf") and data.endswith(b"\r\n")
        return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


@pytest.fixture
def day(tmp_path: Path) -> Day:
    day = Day(tmp_path)
    for number in range(197):
        folder = "holiday" if number % 2 else "at home, ümläut"
        day.photo(f"{folder}/{number:03}.{'jpg' if number % 3 else 'png'}", (number, 40, 255 - number))
    day.photo("phone.heic", (1, 2, 3))
    for name in ("broken.png", "empty.jpg"):
        (day.photos / name).write_bytes(b"\x89PNG" if name == "broken.png" else b"")
    (day.photos / "notes.md").write_text("not a picture")
    (day.photos / ".trash").mkdir()
    day.photo(".trash/gone.png", (0, 0, 0))
    (day.photos / "holiday" / "001.jpg.xmp").write_text(OTHERS)
    return day


def test_a_day_with_a_folder(day: Day) -> None:
    assert day.count() == 200
    day.stop(signal.SIGKILL, 10)
    day.stop(signal.SIGINT, 10)
    answered = [*day.lines()]

    # Some of those that are answered, and some that are not, go; others come.
    left = [name for name in day.names() if name not in answered and name.startswith("holiday")]
    removed = [*answered[:3], *left[-2:]]
    for name in removed:
        (day.photos / name).unlink()
    for number in range(5):
        day.photo(f"new/{number}.png", (200, number, 200))
    changed = answered[5]
    day.photo(changed, (255, 255, 255))
    before = day.lines()[changed]
    day.stop(signal.SIGTERM, 10)

    code, printed = day.run()
    assert code == 1 and "197 of 200 are answered" in printed, printed
    assert "4 files passed over: 3 .xmp, 1 .md" in printed  # the sidecars of those that are gone
    assert "HEIC needs one more package" in printed and "broken.png" in printed and "empty.jpg" in printed
    assert "3 answers in" in printed, "those of the photos that are gone stay"
    assert day.lines()[changed]["files"] != before["files"]

    # The table and the sidecars have what is there so far.
    assert [row["file"] for row in day.rows()] == day.names()
    assert {row["file"] for row in day.rows() if row["error"]} == {"broken.png", "empty.jpg", "phone.heic"}

    for name in ("broken.png", "empty.jpg"):
        day.photo(name, (9, 99, 9))
    day.install_heif()
    code, printed = day.run()
    assert code == 0, printed
    assert "200 of 200 are answered" in printed and "; 3 asked in" in printed, printed

    lines = day.lines()
    assert [name for name in lines if name not in removed] == day.names()
    assert {*lines} - {*day.names()} == {*answered[:3]}
    assert all(line["response"]["status_code"] == 200 for line in lines.values())  # type: ignore[index]
    rows = day.rows()
    assert [row["file"] for row in rows] == day.names()
    assert all(row["answer"] and not row["error"] for row in rows)
    check_sidecars(day, {row["file"]: row["answer"].strip() for row in rows})

    contents = {path: path.read_bytes() for path in day.photos.parent.rglob("*") if path.is_file()}
    code, printed = day.run()
    assert code == 0 and "asked in" not in printed, printed
    assert {path: path.read_bytes() for path in day.photos.parent.rglob("*") if path.is_file()} == contents


def check_sidecars(day: Day, answers: dict[str, str]) -> None:
    others = day.photos / "holiday" / "001.jpg.xmp"
    assert others.read_text() == OTHERS
    sidecars = {name: day.photos / f"{name}.xmp" for name in answers if name != "holiday/001.jpg"}
    for name, sidecar in sidecars.items():
        [description] = ElementTree.parse(sidecar).getroot().findall(f".//{DESCRIPTION}")
        assert description.text == answers[name]
    if exiftool := shutil.which("exiftool"):
        done = subprocess.run(
            [exiftool, "-j", "-charset", "filename=utf8", "-XMP-dc:Description", *sidecars.values()],
            capture_output=True,
            timeout=60,
            check=True,
        )
        read = {entry["SourceFile"]: str(entry["Description"]) for entry in json.loads(done.stdout)}
        assert read == {path.as_posix(): answers[name] for name, path in sidecars.items()}
