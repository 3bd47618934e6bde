"""`pocketvlm read` and `read`: documents into Markdown, text and JSON, page by page, each page once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from engine_seam import model_of
from integration.asking import settle
from iota.scenes import draw, random_scene
from pdfs import pdf, rectangle
from pocketvlm import VLM, PageText, open_document, read
from pocketvlm.cli.commands import app
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ImageError, PocketVLMError, RequestError
from pocketvlm.reading.inputs import find_inputs, output_names
from pocketvlm.reading.preset import Preset
from pocketvlm.reading.presets import GENERAL, preset_for, presets
from pocketvlm.reading.progress_file import ProgressFile
from pocketvlm.reading.read_page import PageReader, ReadOptions

COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "read", "--threads", "1"]
COLOURS = {"Red": "0.86 0.12 0.12", "Blue": "0.12 0.3 0.86", "Green": "0.1 0.6 0.2"}
COLOUR = "What colour is the square?"
SCHEMA = {
    "type": "object",
    "properties": {"shapes": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["shapes"],
    "additionalProperties": False,
}


def squares(count: int = 3, bad: int | None = None, **options: Any) -> bytes:
    """A PDF of pages with a square each; page `bad` has edges of a kilometre."""
    colours = [*COLOURS.values()]
    pages = [rectangle(colours[index % 3], 30, 30, 40, 40) for index in range(count)]
    usual, large = b"/MediaBox [0 0 100 100]          ", b"/MediaBox [0 0 2834646 2834646]  "
    file = pdf(pages, box="[0 0 100 100]", extra=usual.decode(), **options)
    before, *after = file.split(usual)
    return before + b"".join((large if page == bad else usual) + rest for page, rest in enumerate(after, 1))


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


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load(parallel=2, threads=1) as loaded:
        yield loaded


# ---- in Python


def test_pages_are_read_as_pictures_are(vlm: VLM, tmp_path: Path) -> None:
    scenes = [random_scene(Random(number)) for number in range(12)]
    pictures = [draw(scene, Random(number), (384, 384)) for number, scene in enumerate(scenes)]
    pictures[0].save(tmp_path / "scan.pdf", save_all=True, append_images=pictures[1:], resolution=72, quality=95)
    pages = list(read(tmp_path / "scan.pdf", vlm, parallel=2))
    assert [page.number for page in pages] == [*range(1, 13)]
    assert pages[2].label == "page 3 of 12" and pages[2].title == "Page 3"
    question = {"type": "text", "text": "What is in the picture?"}
    for page, picture in zip(pages, pictures, strict=True):
        messages = [{"role": "user", "content": [{"type": "image", "image": picture}, question]}]
        assert page.text == vlm.chat(messages).text, page.label
    assert len({page.text for page in pages}) > 6


def test_a_prompt_and_pages(vlm: VLM) -> None:
    pages = list(read(squares(), vlm, pages="3,1", prompt=COLOUR))
    assert [(page.number, page.text) for page in pages] == [(3, "Green"), (1, "Red")]


def test_the_model_gets_a_page_alone(vlm: VLM) -> None:
    """In a chat, a text before it says which page of how many it is."""

    before = vlm.statistics().prompt_tokens
    list(read(squares(3), vlm, prompt=COLOUR, pages="2"))
    content = [{"type": "file", "image": squares(1)}, {"type": "text", "text": COLOUR}]
    alone = vlm.count_tokens([{"role": "user", "content": content}])
    assert vlm.statistics().prompt_tokens - before == alone.total


def test_json(vlm: VLM) -> None:
    [page] = read(squares(1), vlm, prompt="How many shapes are there?", schema=SCHEMA)
    assert json.loads(page.text) == {"shapes": 1}


def test_a_picture_is_a_document_of_one_page(vlm: VLM, sample_png: Path) -> None:
    [page] = read(sample_png, vlm)
    assert page.title == "Page 1" and "circle" in page.text


def test_a_page_that_fails_does_not_lose_the_others(vlm: VLM, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(squares(bad=2))
    first, second, third = read(tmp_path / "a.pdf", vlm, prompt=COLOUR)
    assert (first.text, second.text, third.text) == ("Red", "", "Green")
    assert second.error is not None and "a.pdf: page 2" in second.error and "too large" in second.error
    assert first.error is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pages": "4"}, ImageError, "no page 4"),
        ({"format": "pdf"}, RequestError, "format: must be"),
        ({"format": "json"}, RequestError, "format: goes with a schema"),
        ({"preset": "no-such-model"}, RequestError, "preset: .* is unknown; known: .*general"),
        ({"parallel": 0}, RequestError, "parallel"),
        ({"schema": SCHEMA, "format": "text"}, RequestError, "format: needs"),
        ({"detail": "huge"}, RequestError, "detail"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    vlm: VLM, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(squares(), vlm, **options)


def test_a_wrong_schema_is_no_fault_of_a_page(vlm: VLM) -> None:
    with pytest.raises(RequestError, match="type"):
        list(read(squares(), vlm, schema={"type": "nothing"}))


def test_stopping_early_leaves_nothing_running(vlm: VLM) -> None:
    before = vlm.statistics().finished + vlm.statistics().cancelled
    pages = read(squares(30), vlm, parallel=2)
    assert next(pages).number == 1
    pages.close()  # type: ignore[attr-defined]  # it is a generator
    settle(vlm)
    assert vlm.statistics().finished + vlm.statistics().cancelled < before + 10


# ---- presets


def test_presets_are_known_by_the_name_of_the_model(vlm: VLM) -> None:
    names = {
        "GLM-OCR-Q8_0": "glm-ocr",
        "glm-ocr": "glm-ocr",
        "PaddleOCR-VL-1.5-GGUF": "paddleocr-vl",
        "LightOnOCR-2-1B-Q8_0": "lightonocr",
        "DeepSeek-OCR-Q4_K_M": "deepseek-ocr",
        "HunyuanOCR.f16": "hunyuanocr",
        "granite-docling-258M-Q8_0": "granite-docling",
        "SmolDocling-256M-preview": "granite-docling",
        "MinerU2.5-2509-1.2B": "mineru",
        "SmolVLM-256M-Instruct": "general",
        "granite-3.3-2b": "general",
        "iota": "iota",
    }
    assert {name: preset_for(replace(vlm.info, name=name)).name for name in names} == names
    marked = replace(vlm.info, name="model", control_tokens={"<otsl>": 1})  # a file that was renamed
    assert preset_for(marked).name == "granite-docling"
    assert set(presets()) == {*names.values()}


def test_what_a_model_is_asked() -> None:
    assert presets()["lightonocr"].question(None, None) == ""
    assert presets()["deepseek-ocr"].question(None, None) == "\n<|grounding|>Convert the document to markdown."
    assert presets()["deepseek-ocr"].question("Free OCR.", None) == "\nFree OCR."
    assert '"shapes"' in GENERAL.question(None, SCHEMA)
    assert "['shapes']" in presets()["hunyuanocr"].question(None, SCHEMA)
    assert GENERAL.question("Only the date.", SCHEMA) == "Only the date."


def with_preset(
    vlm: VLM, preset: Preset, options: ReadOptions | None = None, page: Path | bytes | None = None
) -> PageText:
    """Read a page, by default one with a red square."""
    reader = PageReader(vlm, options or ReadOptions())
    reader._preset = preset
    with open_document(page or squares(1)) as document:
        return reader.read(next(document.pages()), CancellationToken())


def token_of(vlm: VLM, text: str) -> int:
    model = model_of(vlm)
    return next(token for token in range(model.n_vocab) if model.token_text(token) == text)


def test_control_tokens_of_a_notation_are_kept(vlm: VLM) -> None:
    """iota writes none of its own accord, so a bias does."""
    text, token = next(
        (text, token) for text, token in vlm.info.control_tokens.items() if text not in vlm.info.end_tokens
    )
    biased = Preset("biased", COLOUR, max_tokens=3, fields={"logit_bias": {str(token): 100}})
    assert with_preset(vlm, biased).text == ""
    kept = replace(biased, fields={**biased.fields, "skip_special_tokens": False}, to_markdown=str)
    assert with_preset(vlm, kept).text == 3 * text
    stopped = replace(kept, fields={**kept.fields, "stop": (2 * text,)})
    assert with_preset(vlm, stopped).text == ""


def test_the_notation_becomes_markdown(vlm: VLM) -> None:
    marked = Preset("marked", COLOUR, to_markdown=lambda text: f"# {text.lower()}\x1b\r")
    assert with_preset(vlm, marked).text == "# red"
    assert with_preset(vlm, marked, ReadOptions("text")).text == "red"


def test_an_answer_without_end_is_cut_and_tried_again(vlm: VLM, sample_png: Path) -> None:
    """With a bias for one word iota writes nothing else, until the penalty outweighs it."""
    red = next(token for token in range(model_of(vlm).n_vocab) if model_of(vlm).piece(token) == b" red")

    def biased(bias: float) -> PageText:
        fields = {"logit_bias": {str(red): bias}}
        return with_preset(
            vlm, Preset("loop", "What is in the picture?", max_tokens=1500, fields=fields), page=sample_png
        )

    generated = vlm.statistics().generated_tokens
    page = biased(100)
    assert page.text == "red"
    assert page.notes == ("the model repeated itself without end, also with a penalty; its answer is cut there",)
    assert vlm.statistics().generated_tokens - generated < 700  # twice 600 characters, not twice 1500 tokens
    page = biased(16)
    assert page.notes == ("the model repeated itself without end; the page was read again with a penalty",)
    assert 5 < len(page.text) < 1000 and page.text.count("red") < 100


def test_json_without_end_is_an_error_of_the_page(vlm: VLM) -> None:
    endless = {"type": "array", "items": {"const": "red"}, "minItems": 900}
    [page] = read(squares(1), vlm, schema=endless, max_tokens=1000)
    assert page.text == "" and page.error == "the model's JSON is not complete, because it repeats itself"
    [page] = read(squares(1), vlm, schema=SCHEMA, max_tokens=2)
    assert page.error == "the model's JSON is not complete, because it is cut"


# ---- files


def test_one_document(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(squares())
    printed = call(tmp_path / "scan.pdf", "-o", tmp_path / "scan.md", "--prompt", COLOUR)
    assert printed == f"{tmp_path}/scan.md: 1 document of 3 pages\n"
    assert (tmp_path / "scan.md").read_text() == "## Page 1\n\nRed\n\n## Page 2\n\nBlue\n\n## Page 3\n\nGreen\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.md", "scan.pdf"]
    again = call(tmp_path / "scan.pdf", "-o", tmp_path / "scan.md", code=2)
    assert "scan.md exists already" in again


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
    assert len(progress(texts / ".read.jsonl")) == before + 1

    # Pages of another prompt do not get among them.
    assert "another prompt" in call(letters, "-o", texts, code=2)


def test_without_an_output_pages_are_printed(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(squares(2, bad=2))
    (tmp_path / "b.pdf").write_bytes(squares(1))
    names = [str(tmp_path / name) for name in ("a.pdf", "b.pdf")]
    done = CliRunner().invoke(app, ["read", "--threads", "1", *names, "--prompt", COLOUR])
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
        (["a.pdf", "-o", "a.pdf"], "a.pdf exists already"),
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
        _, printed = process.communicate(timeout=30)
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


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    with ProgressFile(tmp_path / "x", {"prompt": None}), pytest.raises(PocketVLMError, match="another read"):
        ProgressFile(tmp_path / "x", {"prompt": None})


@pytest.mark.parametrize("content", [b"{}\n", b"[]\n", b"text\n", b'{"pocketvlm-read": 1}\n{"file": 1}\n'])
def test_a_file_of_others_is_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RequestError):
        ProgressFile(tmp_path / "x", {})
    assert (tmp_path / "x").read_bytes() == content
