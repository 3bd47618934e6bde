"""Documents in front of a model: in Python, on the command line, in a batch and in a saved conversation."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pages import write_video
from pdfs import pdf, rectangle
from pocketvlm import VLM
from pocketvlm.cli.commands import app
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import ImageError, ImageFormatError, ImageTooLargeError, PasswordError, RequestError

COLOURS = {"Red": "0.86 0.12 0.12", "Blue": "0.12 0.3 0.86", "Green": "0.1 0.6 0.2"}
QUESTION = "What colour is the square?"


def squares(**options: Any) -> bytes:
    """A PDF of three pages, each with a square."""
    return pdf([rectangle(colour, 30, 30, 40, 40) for colour in COLOURS.values()], box="[0 0 100 100]", **options)


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    limits = DocumentLimits(pages=4)
    with VLM.load(context_size=1024, threads=1, document_limits=limits) as loaded:
        yield loaded


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "squares.pdf"
    path.write_bytes(squares())
    return path


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_page_is_read_as_its_picture_is(vlm: VLM, file: Path, number: int) -> None:
    answer = vlm.chat(asked({"type": "file", "path": str(file), "pages": number}))
    assert answer.text.strip(" .") == [*COLOURS][number - 1]
    [image] = answer.timings.images
    assert image.pages == 3 and image.notes == () and not image.shrunk
    assert image.original_size == image.used_size == (192, 192)  # drawn at the size that the model sees


def test_every_form_of_a_file(vlm: VLM, file: Path) -> None:
    data = base64.b64encode(file.read_bytes()).decode()
    uri = f"data:application/pdf;base64,{data}"
    parts: list[dict[str, Any]] = [
        {"type": "file", "file": {"filename": "squares.pdf", "file_data": uri}},
        {"type": "file", "file": {"file_data": data}},
        {"type": "input_file", "filename": "squares.pdf", "file_data": uri},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}},
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image", "image": file.read_bytes()},
        {"type": "image", "path": file},
        {"type": "file", "image": file.read_bytes()},
    ]
    counts = [vlm.count_tokens(asked(part)) for part in parts]
    # Each page with its label, as a page that was chosen has it.
    chosen = [{"type": "file", "path": str(file), "pages": str(number)} for number in (1, 2, 3)]
    assert counts == [vlm.count_tokens(asked(*chosen))] * len(parts)
    unlabelled = [{"type": "image", "image": Image.new("RGB", (192, 192))}] * 3
    assert counts[0] != vlm.count_tokens(asked(*unlabelled))


def test_a_video(vlm: VLM, tmp_path: Path) -> None:
    square = Image.new("RGB", (96, 96), "white")
    square.paste((25, 77, 219), (29, 29, 67, 67))
    write_video(tmp_path / "clip.mp4", square)
    uri = "data:video/mp4;base64," + base64.b64encode((tmp_path / "clip.mp4").read_bytes()).decode()
    parts: list[dict[str, Any]] = [
        {"type": "video_url", "video_url": {"url": uri, "frames": 2}},
        {"type": "video_url", "video_url": {"url": uri}, "fps": 1},
        {"type": "video", "video": str(tmp_path / "clip.mp4"), "frames": 2},
        {"type": "file", "path": tmp_path / "clip.mp4", "fps": 1},
    ]
    for part in parts:
        answer = vlm.chat(asked(part))
        assert answer.text.strip(" .") == "Blue" and len(answer.timings.images) == 2
    with pytest.raises(ImageTooLargeError, match="has 8 frames; a request may show at most 4"):
        vlm.chat(asked({"type": "file", "path": tmp_path / "clip.mp4"}))


def test_errors_name_the_part_as_it_was_sent(vlm: VLM, file: Path, tmp_path: Path) -> None:
    missing = {"type": "image", "path": str(tmp_path / "none.png")}
    with pytest.raises(ImageError) as caught:
        vlm.chat(asked({"type": "file", "path": str(file)}, missing))
    assert caught.value.param == "messages.0.content.1.path"
    bad = pdf([b""], box="[0 0 28346 500]")
    with pytest.raises(ImageTooLargeError) as too_large:
        vlm.chat(asked(missing | {"path": str(file)}, {"type": "file", "image": bad}))
    assert too_large.value.param == "messages.0.content.1.image" and "page 1" in str(too_large.value)
    for pages, kind in (("0", RequestError), ("4", ImageError)):
        with pytest.raises(kind) as wrong:
            vlm.chat(asked({"type": "file", "path": str(file), "pages": pages}))
        assert str(wrong.value.param).startswith("messages.0.content.0.")
    named = {"filename": "tax.pdf", "file_data": "data:application/pdf;base64," + base64.b64encode(b"%PDF-").decode()}
    with pytest.raises(ImageFormatError, match=r"messages\.0\.content\.0\.file\.file_data: tax\.pdf: damaged"):
        vlm.chat(asked({"type": "file", "file": named}))


def test_more_pages_than_a_request_may_show(vlm: VLM, file: Path) -> None:
    part = {"type": "file", "path": str(file)}
    with pytest.raises(ImageTooLargeError, match="has 3 pages; a request may show at most 4; choose some") as caught:
        vlm.chat(asked(part, part))
    assert caught.value.param == "messages.0.content.1.path"
    vlm.count_tokens(asked(part, {**part, "pages": "2"}))


def test_the_time_of_a_request_is_limited(file: Path) -> None:
    limits = DocumentLimits(request_seconds=1e-6)
    with (
        VLM.load(context_size=1024, threads=1, document_limits=limits) as vlm,
        pytest.raises(ImageTooLargeError, match=r"page 1 of 3: the files of a request may take 1e-06 s"),
    ):
        vlm.chat(asked({"type": "file", "path": str(file)}))


def test_a_saved_conversation_has_the_pages(vlm: VLM, file: Path, tmp_path: Path) -> None:
    messages = asked({"type": "file", "path": str(file), "pages": "2", "detail": "low"})
    answer = vlm.chat(messages).text
    assert vlm.conversation[0]["content"][0]["type"] == "file"
    vlm.save(tmp_path / "talk.session")
    restored = vlm.restore(tmp_path / "talk.session")
    kinds = [part["type"] for part in restored[0]["content"]]
    assert kinds == ["text", "image", "text"] and restored[0]["content"][0]["text"] == "Page 2 of 3:"
    assert vlm.chat(restored[:1]).text == answer == "Blue"


def test_the_command_line(file: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    shown = run(app, ["chat", QUESTION, "-i", str(file), "--pages", "2", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["choices"][0]["message"]["content"].strip(" .") == "Blue"
    (tmp_path / "locked.pdf").write_bytes(squares(password="secret"))
    (tmp_path / "junk.pdf").write_bytes(b"%PDF-1.7 junk")
    for options, reason in (
        ([str(file), "--pages", "7"], "squares.pdf: there is no page 7; it has 3"),
        ([str(file), "--pages", "x"], "invalid pages 'x'; use e.g. 1-3,7 or 5-"),
        ([str(tmp_path / "locked.pdf")], "locked.pdf: is encrypted; give its password"),
        ([str(tmp_path / "locked.pdf"), "--password", "Secret"], "locked.pdf: the password is wrong"),
        ([str(tmp_path / "junk.pdf")], "junk.pdf: damaged or truncated"),
    ):
        refused = run(app, ["chat", QUESTION, "-i", *options])
        assert refused.exit_code != 0 and reason in str(refused.exception), refused.output
    opened = run(app, ["chat", QUESTION, "-i", str(tmp_path / "locked.pdf"), "--pages", "1", "--password", "secret"])
    assert opened.stdout.strip(" .\n") == "Red"


def test_a_batch_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(squares())
    output = tmp_path / "answers.jsonl"
    command = ["batch", str(folder), "-o", str(output), "--prompt", QUESTION]
    done = CliRunner().invoke(app, [*command, "--pages", "2"])
    assert done.exit_code == 0, done.output
    [line] = [json.loads(text) for text in output.read_text("utf-8").splitlines()]
    assert line["custom_id"] == "a.pdf"
    assert "Blue" in json.dumps(line)


def test_a_password_is_not_shown(vlm: VLM) -> None:
    part = {"type": "file", "image": squares(password="secret"), "password": "other-secret"}
    with pytest.raises(PasswordError) as caught:
        vlm.chat(asked(part))
    assert "secret" not in str(caught.value)
