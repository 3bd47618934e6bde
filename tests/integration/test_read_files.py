"""`pocketvlm read`: documents into Markdown, text and JSON files, each page once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from typer.testing import CliRunner

from integration.squares import COLOUR, COLOURS, SCHEMA, squares
from pocketvlm.cli.commands import app
from pocketvlm.documents.document import Document
from pocketvlm.errors import ImageError, PocketVLMError, RequestError
from pocketvlm.reading.inputs import Input, find_inputs, output_names
from pocketvlm.reading.progress_file import ProgressFile
from pocketvlm.reading.read_files import FileReader, Listener, Source
from pocketvlm.reading.read_page import PageReader, PageText

COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "read", "--threads", "1"]


def call(*arguments: str | Path, code: int = 0) -> str:
    """Run the command, and return what it prints on standard error; an expected error as its only line."""
    done = CliRunner().invoke(app, ["read", "--threads", "1", *map(str, arguments)])
    if isinstance(done.exception, PocketVLMError):
        assert code == 2
        return f"{done.exception}\n"
    assert done.exit_code == code, (done.stderr, done.exception)
    assert done.stdout == ""
    return done.stderr


def progress(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_one_document(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(squares())
    printed = call(tmp_path / "scan.pdf", "-o", tmp_path / "scan.md", "--prompt", COLOUR)
    assert printed == f"{tmp_path}/scan.md: 1 document of 3 pages\n"
    assert (tmp_path / "scan.md").read_text() == "## Page 1\n\nRed\n\n## Page 2\n\nBlue\n\n## Page 3\n\nGreen\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.md", "scan.pdf"]
    again = call(tmp_path / "scan.pdf", "-o", tmp_path / "scan.md", code=2)
    assert "scan.md: exists already" in again


def test_a_folder(tmp_path: Path, sample_png: Path) -> None:
    letters, texts = tmp_path / "letters", tmp_path / "texts"
    (letters / "old").mkdir(parents=True)
    (letters / "b.pdf").write_bytes(squares(2))
    (letters / "old" / "a.pdf").write_bytes(squares(2, bad=2))
    (letters / "c.pdf").write_bytes(b"%PDF-1.7 is not one")
    shutil.copy(sample_png, letters / "b.png")
    (letters / "notes.txt").write_text("no document")
    arguments = (letters, "-o", texts, "--prompt", COLOUR)
    printed = call(*arguments, code=1)
    assert f"not read: {letters}/c.pdf: damaged" in printed
    assert f"not read: {letters}/old/a.pdf: page 2" in printed
    assert "3 documents of 5 pages, 1 page could not be read, 1 document could not be opened" in printed
    written = sorted(path.relative_to(texts).as_posix() for path in texts.rglob("*"))
    assert written == [".read.jsonl", "b.pdf.md", "b.png.md", "old", "old/a.md"]
    assert "## Page 2\n\n> Not read: " in (texts / "old" / "a.md").read_text()

    # What failed is tried again, alone.
    call(*arguments, code=1)
    tried = [entry.get("page") for entry in progress(texts / ".read.jsonl") if entry.get("file") == "old/a.pdf"]
    assert sorted(filter(None, tried)) == [1, 2, 2]

    # What has changed or is new is read; what is done is not.
    before = (texts / "b.pdf.md").stat().st_mtime_ns
    (letters / "old" / "a.pdf").write_bytes(squares(2))
    (letters / "c.pdf").unlink()
    (letters / "d.pdf").write_bytes(squares(1))
    printed = call(*arguments)
    assert "2 documents of 3 pages, 2 documents read before" in printed
    assert "Not read" not in (texts / "old" / "a.md").read_text()
    assert (texts / "b.pdf.md").stat().st_mtime_ns == before
    assert call(*arguments).endswith("texts: 4 documents read before\n")

    # An output that was removed, or not written before a kill, is written again from the pages that are there.
    before = len(progress(texts / ".read.jsonl"))
    (texts / "d.md").unlink()
    assert "1 document of 1 page, 3 documents read before" in call(*arguments)
    assert (texts / "d.md").read_text() == "## Page 1\n\nRed\n"
    assert len(progress(texts / ".read.jsonl")) == before + 2  # to be written, and written

    # Pages of another prompt do not get among them.
    assert "another prompt" in call(letters, "-o", texts, code=2)


def test_what_was_not_written_from_a_file_is_not_replaced(tmp_path: Path, sample_png: Path) -> None:
    out = tmp_path / "out"
    for year in ("2023", "2024"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "a.pdf").write_bytes(squares(int(year[-1]) - 2))
    call(tmp_path / "2023", "-o", out, "--prompt", COLOUR)
    first = (out / "a.md").read_text()
    assert "a.md: exists already" in call(tmp_path / "2024", "-o", out, "--prompt", COLOUR, code=2)
    assert (out / "a.md").read_text() == first

    (out / "notes.md").write_text("mine")
    shutil.copy(sample_png, tmp_path / "2023" / "notes.png")
    assert "notes.md: exists already" in call(tmp_path / "2023", "-o", out, "--prompt", COLOUR, code=2)
    assert (out / "notes.md").read_text() == "mine"
    (tmp_path / "2023" / "notes.png").unlink()

    (tmp_path / "2023" / "a.pdf").write_bytes(squares(2))
    (out / "a.md").write_text(f"{first}my note")
    assert "a.md: exists already" in call(tmp_path / "2023", "-o", out, "--prompt", COLOUR, code=2)
    (out / "a.md").write_text(first)
    call(tmp_path / "2023", "-o", out, "--prompt", COLOUR)
    assert (out / "a.md").read_text() == f"{first}\n## Page 2\n\nBlue\n"


def test_an_output_that_a_kill_left_without_its_last_line_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pdf").write_bytes(squares(1))
    arguments = (tmp_path / "in", "-o", tmp_path / "out", "--prompt", COLOUR)
    call(*arguments)
    record = tmp_path / "out" / ".read.jsonl"
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:-1]))
    assert "1 document of 1 page" in call(*arguments)


def test_without_an_output_pages_are_printed(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(squares(2, bad=2))
    (tmp_path / "b.pdf").write_bytes(squares(1))
    names = [str(tmp_path / name) for name in ("a.pdf", "b.pdf")]
    done = CliRunner().invoke(app, ["read", "--threads", "1", *names, "--prompt", COLOUR, "-o", "-"])
    assert done.exit_code == 1
    first, second = done.stdout.split("\n# b.pdf\n\n")
    assert first.startswith("# a.pdf\n\n## Page 1\n\nRed\n\n## Page 2\n\n> Not read: ")
    assert second == "## Page 1\n\nRed\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "b.pdf"]


def test_text_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(squares(2, bad=2))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    call(tmp_path / "a.pdf", "-o", tmp_path / "a.txt", "--prompt", COLOUR, "--pages", "1")
    assert (tmp_path / "a.txt").read_text() == "[Page 1]\n\nRed\n"
    ask = ("--json-schema", tmp_path / "schema.json", "--prompt", "How many shapes are there?")
    call(tmp_path / "a.pdf", "-o", tmp_path / "a.json", *ask, code=1)
    first, second = json.loads((tmp_path / "a.json").read_text())["pages"]
    assert first == {"page": 1, "label": "page 1 of 2", "data": {"shapes": 1}}
    assert "too large" in second["error"]


def test_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(squares(password="let-me-in"))
    printed = call(tmp_path / "a.pdf", "-o", tmp_path / "a.md", code=2)
    assert printed.count("\n") == 1 and "a.pdf" in printed and "is encrypted" in printed
    assert not (tmp_path / "a.md").exists()
    monkeypatch.setenv("POCKETVLM_PASSWORD", "let-me-in")
    call(tmp_path / "a.pdf", "-o", f"{tmp_path}/out/", "--pages", "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".read.jsonl", "a.md"]
    assert "let-me-in" not in (tmp_path / "out" / ".read.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.pdf", "-o", "a.md"], "no.pdf: there is no such file"),
        (["*.tiff", "-o", "a.md"], r"*.tiff: there is no such file"),
        (["a.pdf", "-o", "a.md", "--pages", "9"], "there is no page 9"),
        (["a.pdf", "-o", "a.md", "--format", "pdf"], "--format: must be markdown or text"),
        (["a.pdf", "-o", "a.md", "--format", "json"], "--format: needs --json-schema"),
        (["a.pdf", "-o", "a.md", "--preset", "x"], "--preset: x is unknown"),
        (["a.pdf", "-o", "a.md", "--detail", "x"], "--detail"),
        (["a.pdf", "a.pdf", "b.pdf", "-o", "a.pdf"], "is a file, and a folder is needed"),
        (["empty", "-o", "out"], "empty: has no PDFs or pictures"),
        (["a.pdf", "-o", "a.pdf"], "a.pdf: exists already"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(squares())
    (tmp_path / "empty").mkdir()
    printed = call(*arguments, code=2)
    assert message in printed and printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "b.pdf", "empty"]
    assert (tmp_path / "a.pdf").read_bytes() == squares()


def test_inputs(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf", "clip.mp4", "deep/a.png", "deep/.hidden.png", ".git/x.png", "b.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    everything = find_inputs([str(tmp_path), str(tmp_path / "b.pdf")])
    assert [one.name for one in everything] == ["a.pdf", "b.pdf", "deep/a.png"]
    assert [one.name for one in find_inputs([str(tmp_path / "[ab].pdf")])] == ["a.pdf", "b.pdf"]
    assert [one.name for one in find_inputs([str(tmp_path / "clip.mp4")])] == ["clip.mp4"]  # it is named
    assert [*output_names(everything, ".md")] == ["a.md", "b.md", "deep/a.md"]
    two = find_inputs([str(tmp_path / "a.pdf"), str(tmp_path / "deep" / "a.png")])
    assert [*output_names(two, ".md")] == ["a.pdf.md", "a.png.md"]
    (tmp_path / "deep" / "a.pdf").touch()
    with pytest.raises(RequestError, match="two folders"):
        output_names(find_inputs([str(tmp_path / "a.pdf"), str(tmp_path / "deep" / "a.pdf")]), ".md")


@pytest.mark.slow
def test_killed_twice_and_resumed(tmp_path: Path) -> None:
    count = 60
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.pdf").write_bytes(squares(count))
    arguments = [str(tmp_path / "scans"), "-o", str(tmp_path / "texts"), "--prompt", COLOUR]
    record = tmp_path / "texts" / ".read.jsonl"
    before = 1
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
        while process.poll() is None and (not record.exists() or record.read_bytes().count(b"\n") < before + 5):
            time.sleep(0.01)
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 130), printed
        assert "Traceback" not in printed
        assert not (tmp_path / "texts" / "a.md").exists()
        before = record.read_bytes().count(b"\n")
        assert before < count
    with record.open("ab") as file:
        file.write(b'{"file": "a.pdf", "page')  # as a kill in the middle of a line would leave it
    call(*arguments)
    pages = [entry["page"] for entry in progress(record) if "page" in entry]
    assert sorted(pages) == [*range(1, count + 1)]  # each was read once
    colours = [[*COLOURS][number % 3] for number in range(count)]
    expected = [f"## Page {number}\n\n{colour}\n" for number, colour in enumerate(colours, 1)]
    assert (tmp_path / "texts" / "a.md").read_text() == "\n".join(expected)


def peak_memory(process: subprocess.Popen[str]) -> int:
    """Return the most anonymous memory that a process and its children have at a time, in bytes."""
    peak = 0
    while process.poll() is None:
        processes, total = [process.pid], 0
        for number in processes:
            with suppress(OSError):  # it has just ended
                status = Path(f"/proc/{number}/status").read_text()
                total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
                for task in Path(f"/proc/{number}/task").iterdir():
                    processes += map(int, (task / "children").read_text().split())
        peak = max(peak, total << 10)
        time.sleep(0.03)
    return peak


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_document(tmp_path: Path) -> None:
    """A scan of 100 pages, each a JPEG of 2 megapixels; docs/design/041 has the figures of 300."""
    noise = Image.effect_noise((1240, 1754), 80).convert("RGB")
    noise.save(tmp_path / "scan.pdf", save_all=True, append_images=[noise] * 99, resolution=150)
    peaks = []
    for pages in ("1", "1-"):
        arguments = [str(tmp_path / "scan.pdf"), "-o", str(tmp_path / f"{pages}.md"), "--pages", pages]
        process = subprocess.Popen([*COMMAND, *arguments, "--prompt", COLOUR], stderr=subprocess.DEVNULL, text=True)
        peaks.append(peak_memory(process))
        assert process.returncode == 0
    assert (tmp_path / "1-.md").read_text().count("## Page ") == 100
    assert peaks[0] > 50 << 20  # something was measured
    assert peaks[1] < peaks[0] + (150 << 20)


def test_where_there_are_no_pages_the_prompt_may_change(tmp_path: Path) -> None:
    ProgressFile(tmp_path / "x", {"prompt": "one"}).close()
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").write_text('{"pocketvlm-read": 1, "prompt": "one"}\n')  # killed before its page
    for _ in range(2):
        with ProgressFile(tmp_path / "x", {"prompt": "two"}) as progress:
            progress.add("a", "1", PageText(1, "", "text"))
    with pytest.raises(RequestError, match="another prompt: 'two'"):
        ProgressFile(tmp_path / "x", {"prompt": "one"})


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    with ProgressFile(tmp_path / "x", {"prompt": None}), pytest.raises(PocketVLMError, match="another read"):
        ProgressFile(tmp_path / "x", {"prompt": None})


class VanishingSource(Source):
    """Removes a file after its stamp is taken, before it is opened."""

    def open(self, path: Path) -> tuple[Document, list[int]]:
        path.unlink()
        return super().open(path)


def test_a_file_that_vanishes_does_not_end_the_others(tmp_path: Path) -> None:
    outputs = {}
    for name in ("a", "b"):
        (tmp_path / f"{name}.pdf").write_bytes(squares())
        outputs[f"{name}.md"] = Input(tmp_path / f"{name}.pdf", f"{name}.pdf")
    errors: list[ImageError] = []
    with ProgressFile(tmp_path / "x", {}) as progress:
        reader = FileReader(outputs, tmp_path, VanishingSource(), progress, "markdown")
        counts = reader.run(cast(PageReader, None), 1, Listener(fails=errors.append))  # there are no pages
    assert counts.failed_documents == 2
    assert [error.message.partition(":")[0] for error in errors] == [str(tmp_path / f"{name}.pdf") for name in "ab"]


@pytest.mark.parametrize("content", [b"{}\n", b"[]\n", b"text\n", b'{"pocketvlm-read": 1}\n{"file": 1}\n'])
def test_a_file_of_others_is_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RequestError):
        ProgressFile(tmp_path / "x", {})
    assert (tmp_path / "x").read_bytes() == content
