"""Pictures on the command line: after -i, behind the question and before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from pocketvlm.cli.commands import app
from pocketvlm.cli.picture_arguments import has_pages, question_and_pictures

FILES = ("a.png", "b.png", "my photo.jpg", "notes", "model.gguf")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(command: str, *words: str) -> dict[str, Any]:
    group: Any = typer.main.get_group(app)
    context = group.get_command(None, command).make_context(command, list(words))
    return dict(context.params)


@pytest.mark.parametrize(
    ("words", "question", "pictures"),
    [
        (["What?", "-i", "a.png", "b.png"], "What?", ["a.png", "b.png"]),
        (["-i", "a.png", "b.png", "What?"], "What?", ["a.png", "b.png"]),
        (["-i", "a.png", "my photo.jpg", "--temperature", "0", "What?"], "What?", ["a.png", "my photo.jpg"]),
        (["--image", "a.png", "notes"], None, ["a.png", "notes"]),
        (["--image=a.png", "b.png", "What?"], "What?", ["a.png", "b.png"]),
        (["-i", "a.png", "-i", "b.png", "What?"], "What?", ["a.png", "b.png"]),
        (["-i", "a.png", "--", "b.png"], None, ["a.png", "b.png"]),
        (["What?", "a.png", "b.png"], "What?", ["a.png", "b.png"]),
        (["a.png", "What?"], "What?", ["a.png"]),
        (["a.png", "b.png"], None, ["a.png", "b.png"]),
        (["What is in a.png"], "What is in a.png", []),
        (["notes"], "notes", []),
        (["notes", "What?"], "What?", ["notes"]),
        (["nope.png"], None, ["nope.png"]),
        (["What?", "nope"], "What?", ["nope"]),
        (["What?", "-"], "What?", ["-"]),
        (["What?", "-i", "-"], "What?", ["-"]),
        (["What?", "-i", "data:image/png;base64,AA"], "What?", ["data:image/png;base64,AA"]),
        ([], None, []),
    ],
)
def test_what_is_the_question(words: list[str], question: str | None, pictures: list[str]) -> None:
    found = parsed("chat", *words)
    asked, more = question_and_pictures(
        [word for word in (found["prompt"], *(found["more"] or ())) if word is not None]
    )
    assert (asked, [*(found["image"] or ()), *more]) == (question, pictures)


def test_a_model_is_no_picture() -> None:
    found = parsed("bench", "-i", "a.png", "b.png", "model.gguf")
    assert (found["picture"], found["model"]) == (["a.png", "b.png"], "model.gguf")


def test_what_has_pages_is_known_by_its_content(folder: Path) -> None:
    pdf = folder / "no ending"
    pdf.write_bytes(b"%PDF-1.7\n")
    assert has_pages(str(pdf)) and has_pages(b"%PDF-1.7\n")
    for other in ("a.png", "nowhere", "data:application/pdf;base64,AA", b"\x89PNG"):
        assert not has_pages(other)
