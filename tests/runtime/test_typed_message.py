"""What a person types in a conversation: commands, questions, and the paths of pictures in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pocketvlm.cli.conversation.paths_of_word import complete_path
from pocketvlm.cli.conversation.typed_message import (
    TypedCommand,
    TypedMessage,
    is_open,
    picture_source,
    read_message,
    read_typed,
)
from pocketvlm.errors import RequestError

COMMANDS = ["/image", "/bye"]
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def home(tmp_path: Path, sample_png: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home and working directory, with some files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mes été").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("x.png", "y.png", "my photo.png", "l'image.png", "mes été/é 1.png", "cafe\u0301.png", "(1).png"):
        shutil.copy(sample_png, tmp_path / name)
    for name in ("scan.pdf", "clip.mp4", "notes.txt", "Makefile"):
        (tmp_path / name).write_bytes(b"text")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "question", "pictures"),
    [
        ("What is this?", "What is this?", []),
        ("x.png What is this?", "What is this?", ["x.png"]),
        ("What is this? x.png", "What is this?", ["x.png"]),
        ("What is in x.png?", "What is in x.png?", ["x.png"]),
        ("What is in x.png", "What is in x.png", ["x.png"]),
        ("What is in ~/x.png?", "What is in x.png?", ["~/x.png"]),
        ("Compare ./x.png and (y.png).", "Compare x.png and (y.png).", ["./x.png", "y.png"]),
        ("Compare these: x.png y.png", "Compare these:", ["x.png", "y.png"]),
        ("x.png  y.png", "", ["x.png", "y.png"]),
        ("x.png y.png Which is red?", "Which is red?", ["x.png", "y.png"]),
        ("my photo.png what?", "what?", ["my photo.png"]),
        ("'my photo.png' what?", "what?", ["my photo.png"]),
        ('What? "my photo.png"', "What?", ["my photo.png"]),
        ("my\\ photo.png", "", ["my photo.png"]),
        ("~/my photo.png what?", "what?", ["~/my photo.png"]),
        ("~/mes\\ été/é\\ 1.png ~/x.png", "", ["~/mes été/é 1.png", "~/x.png"]),
        ("'~/l'\\''image.png' Qu'est-ce ?", "Qu'est-ce ?", ["~/l'image.png"]),
        ("What's in x.png, and what's in y.png?", "What's in x.png, and what's in y.png?", ["x.png", "y.png"]),
        ("~/caf\u00e9.png", "", ["~/cafe\u0301.png"]),
        ("\\(1\\).png what?", "what?", ["(1).png"]),
        ("file://~/mes%20%C3%A9t%C3%A9/%C3%A9%201.png what?", "what?", ["~/mes été/é 1.png"]),
        ("file://localhost~/x.png", "", ["~/x.png"]),
        ("scan.pdf clip.mp4 what?", "what?", ["scan.pdf", "clip.mp4"]),
        ("nothing.png what?", "nothing.png what?", []),
        ("See https://example.org/x.png there", "See https://example.org/x.png there", []),
        ("make the Makefile", "make the Makefile", []),
        ("", "", []),
        (
            "a\nx.png\nb x.png\n~/y.png 'x.png'\n/not/there.png",
            "a\nb x.png\n/not/there.png",
            ["x.png", "~/y.png", "x.png"],
        ),
    ],
)
def test_pictures_of_a_question(typed: str, question: str, pictures: list[str], home: Path) -> None:
    typed = typed.replace("file://~", f"file://{home}").replace("localhost~", f"localhost{home}")
    message = read_message(typed)
    found = [Path(path).resolve() for path in message.pictures]
    assert (message.question, found) == (question, [Path(path).expanduser().resolve() for path in pictures])


def test_a_file_that_is_not_a_picture() -> None:
    assert read_message("~/notes.txt what?") == TypedMessage("~/notes.txt what?", (), ("~/notes.txt",))
    assert read_message("x.png ./notes.txt what?") == TypedMessage("./notes.txt what?", ("x.png",), ("./notes.txt",))


@pytest.mark.parametrize("typed", ["/no/x.png what?", "what? ~/no.png", "'./no here.png'", "file:///no/x.jpg"])
def test_a_picture_that_is_not_there(typed: str) -> None:
    if typed.startswith("file:"):
        assert read_message(typed).pictures == ()
        return
    with pytest.raises(RequestError, match="no such file"):
        read_message(typed)


def test_commands(home: Path) -> None:
    assert read_typed(" /image  x y ", COMMANDS) == TypedCommand("/image", "x y")
    assert read_typed("/bye", COMMANDS) == TypedCommand("/bye", "")
    assert read_typed(f"{home}/x.png what?", COMMANDS) == TypedMessage("what?", (f"{home}/x.png",))
    for typed in ("/pictures", "/usr/nothing"):
        with pytest.raises(RequestError, match="/help lists the commands"):
            read_typed(typed, COMMANDS)


def test_several_lines() -> None:
    assert is_open('"""') and is_open(' """a\nb') and not is_open('a """') and not is_open('"""a\n"""')
    assert read_typed('"""a\n/bye\n"""', COMMANDS) == TypedMessage("a\n/bye")
    assert read_typed('"""a', COMMANDS) == TypedMessage("a")


def test_a_long_text_is_read_at_once() -> None:
    """Each word may be a path; the time must not grow with the square of their number."""
    text = "x.pn/g 'a ~/b (c. " * 5000
    assert read_message(text).question == text.strip()


def test_sources(home: Path) -> None:
    assert picture_source("https://example.org/a b.png") == "https://example.org/a b.png"
    assert picture_source(f"file://{home}/mes%20été/%C3%A9%201.png") == f"{home}/mes été/é 1.png"
    assert picture_source("my\\ photo.png") == "my photo.png"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("x", ["x.png"]),
        ("what is ~/x", ["~/x.png"]),
        ("me", ["mes\\ été/"]),
        ("'me", ["'mes été/"]),
        ('"mes été/', ['"mes été/é 1.png"']),
        ("mes\\ été/", ["mes\\ été/é\\ 1.png"]),
        ("m", ["mes\\ été/", "my\\ photo.png"]),
        ("l", ["l\\'image.png"]),
        (".h", [".hidden/"]),
        ("~/.h", ["~/.hidden/"]),
        ("/image ", ["(1).png", "cafe\u0301.png", "l'image.png", "mes été/", "my photo.png", "x.png", "y.png"]),
        ("what's in x", ["x.png"]),
        ("nothing/", []),
        ("no\0thing", []),
    ],
)
def test_paths_are_completed(typed: str, completed: list[str]) -> None:
    found = [*complete_path(typed, lambda path: path.suffix == ".png")]
    texts = [path.name for path in found] if typed.startswith("/image") else [path.text for path in found]
    assert sorted(texts) == sorted(completed)
    for path in found:
        whole = typed[: len(typed) - path.length] + path.text
        if not path.text.endswith("/"):
            assert read_message(whole.removeprefix("/image ")).pictures, f"{whole} is not read as it is completed"
