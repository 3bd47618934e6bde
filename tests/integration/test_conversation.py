"""A conversation in a terminal: keys are typed and the screen is read."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketvlm import VLM
from pocketvlm.cli.answer_report import ProgressBar
from pocketvlm.cli.conversation.plain_answer import PlainAnswer
from pocketvlm.cli.conversation.screen import Screen
from pocketvlm.cli.conversation.state import Conversation
from pocketvlm.cli.conversation.turns import Turns
from terminals import CTRL_C, CTRL_D, ENTER, TAB, UP, Terminal

CHAT = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "chat"]
READY = "Ask, or drop a picture here."


def environment(state: Path, **more: str) -> dict[str, str]:
    """As in a terminal with colours, without a clipboard or a multiplexer."""
    without = {"NO_COLOR", "TMUX", "DISPLAY", "WAYLAND_DISPLAY", "POCKETVLM_PRIVATE", "COLUMNS", "LINES"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return kept | {"TERM": "xterm-256color", "XDG_STATE_HOME": str(state), "SSH_TTY": "/dev/null"} | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sample_png: Path) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "mes été").mkdir()
    shutil.copy(sample_png, folder / "mes été" / "l'image 1.png")
    (folder / "text.png").write_text("this is text")
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Terminal]:
    with Terminal(CHAT, environment(folder / "state"), folder=folder) as terminal:
        assert "readable by you alone" in " ".join(terminal.wait(READY).split())  # a long path breaks the line
        yield terminal


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load() as vlm:
        yield vlm


@pytest.fixture
def terminal(running: Terminal) -> Terminal:
    """Each test starts from the same state, because tests run in several processes and in any order."""
    running.ready()
    running.ask("/set preview off")
    running.ask("/reset")
    return running


def test_a_dropped_picture(terminal: Terminal, folder: Path) -> None:
    terminal.ask("/set preview on")
    dropped = str(folder / "mes été" / "l'image 1.png").replace("'", "\\'").replace(" ", "\\ ")
    terminal.paste(dropped + " ")
    lines = terminal.ask("What number is printed?")
    assert "picture 1: l'image 1.png, 640x480" in lines
    assert any(line.startswith("▀▀▀▀") for line in lines), "no small picture"
    assert "42" in lines
    assert terminal.ask("/set preview off")[-1] == "preview off"
    uri = (folder / "mes été" / "l'image 1.png").as_uri()
    terminal.paste(f"{uri} '{folder}/mes été/l'\\''image 1.png'")
    lines = terminal.ask()
    assert lines[-2:] == ["picture 2: l'image 1.png, 640x480", "picture 3: l'image 1.png, 640x480"]


def test_pasted_lines_are_one_question(terminal: Terminal) -> None:
    terminal.paste("".join(f"line {n}\n" for n in range(29)))
    terminal.type("the last one")
    screen = terminal.wait("the last one")
    assert [line for line in screen.split("\n") if line.startswith(">")][-1] == "> line 0"
    lines = terminal.ask()
    assert lines[-1] != "  the last one", "there is no answer"
    assert not any(line.startswith("> line") for line in lines[1:]), "a line became a question"


def test_several_lines_in_quotes(terminal: Terminal, sample_png: Path) -> None:
    lines = terminal.ask(f'"""How many{ENTER}shapes are there?{ENTER}{sample_png}{ENTER}"""')
    assert any("sample.png, 640x480" in line for line in lines)
    assert terminal.ask(UP)[:2] == ['> """How many', "  shapes are there?"], "history has the whole text"


def test_interrupts_while_typing(terminal: Terminal, sample_png: Path) -> None:
    terminal.type("half a question", CTRL_C)
    assert terminal.ask(f"/image {sample_png}")[0].startswith("> /image"), "the line was not cleared"
    terminal.type(CTRL_C)
    terminal.wait("press Ctrl-C again to end")
    terminal.type("x", CTRL_C)  # something was typed since
    assert "2" in terminal.ask("How many shapes are there?"), "the conversation went on"


@pytest.mark.parametrize("stage", ["encoding", "answering"])
def test_interrupts_while_it_works(
    stage: str, vlm: VLM, sample_png: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The conversation goes on, with what there is of an answer."""

    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    screen = Screen()
    screen.interactive = True
    conversation = Conversation(vlm)
    turns = Turns(conversation, screen, lambda: None)
    vlm.clear_picture_cache()
    turns.attach(str(sample_png))
    if stage == "encoding":
        monkeypatch.setattr(ProgressBar, "__call__", interrupt)
    else:
        monkeypatch.setattr(PlainAnswer, "add", interrupt)
    turns.ask("What shape is at the top left?")
    assert "stopped; " in capsys.readouterr().err
    if stage == "encoding":
        assert (conversation.messages, len(conversation.pending)) == ([], 1), "the picture waits for the next question"
        turns.ask("What shape is at the top left?")
    else:
        assert conversation.messages[-1]["role"] == "assistant" and conversation.last_answer
        turns.retry()
    assert capsys.readouterr().out == "A circle\n"
    assert len(conversation.messages) == 2


def test_asking_again(vlm: VLM, sample_png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.interactive = True
    conversation = Conversation(vlm)
    turns = Turns(conversation, screen, lambda: None)
    turns.attach(str(sample_png))
    turns.ask("What shape is at the top left?")
    turns.attach(str(sample_png))
    capsys.readouterr()
    turns.retry()
    shown = capsys.readouterr().err
    assert "asked again with temperature 0.7" in shown and "The picture of 640x480" not in shown, "said already"
    assert (len(conversation.messages), len(conversation.pending)) == (2, 1), "the new picture waits"
    conversation.set("max_tokens", "1")  # now the answer may differ, so it is the likeliest again
    turns.retry()
    assert "asked again" not in capsys.readouterr().err and conversation.last_answer == "A"
    turns.ask("What number is printed?")
    assert (conversation.seen, conversation.pending) == (2, [])


def test_what_is_typed_meanwhile_comes_next(terminal: Terminal, sample_png: Path) -> None:
    terminal.type(f"/clear-cache{ENTER}{sample_png} How many shapes are there?{ENTER}")
    terminal.wait("picture 1: ")
    terminal.paste("What number\nis printed?")
    terminal.type(ENTER)
    screen = terminal.wait("42").split("\n")
    assert "2" in screen and screen.index("2") < screen.index("> What number") < screen.index("  is printed?")


def test_each_command_says_that_it_is_done(terminal: Terminal, sample_png: Path, tmp_path: Path) -> None:
    for typed, line in {
        "/set temperature 0": "temperature 0",
        "/set top_k many": "error: top_k: must be an integer",
        "/set temprature 1": "error: /set: there is no setting temprature; did you mean temperature?",
        "/system Answer briefly.": "system message set",
        '/system ""': "system message removed",
        "/timings": "timings on",
        "/clear-cache": "picture cache is empty",
        "/copy": "error: /copy: there is no answer yet",
        "/retry": "error: there is no question yet",
        f"{sample_png} How many shapes are there?": "2",
        f"/save {tmp_path}/talk": f"saved to {tmp_path}/talk: 1 question, 1 picture",
        "/reset": "new conversation",
        f"/load {tmp_path}/talk": "loaded talk: 1 question, 1 picture",
        "/picture": "error: unknown command /picture; /help lists the commands",
        "/nowhere/a.png": "error: /nowhere/a.png: no such file",
        "/image [/x].png": "error: [/x].png: no such file",
        "nowhere/a.png what?": "error: nowhere/a.png: no such file",
        "/model nothing-like-it": "nothing-like-it: no such",
        "/model": "* iota",
    }.items():
        printed = " ".join(terminal.ask(typed)[1:])
        assert line.replace(" ", "") in printed.replace(" ", ""), (typed, printed)
    assert terminal.ask("/timings")[-1] == "timings off"
    assert terminal.ask("/copy")[-1] == "copied 1 characters, by the terminal"
    assert base64.b64encode(b"2") in terminal.written.rpartition(b"\x1b]52;c;")[2]


def test_a_wrong_picture(terminal: Terminal, folder: Path, sample_png: Path) -> None:
    lines = terminal.ask(f"{sample_png} {folder}/text.png What is this?")
    assert "is not a picture of a supported format" in " ".join(lines)
    assert terminal.ask(f"/image {sample_png}")[-1] == "picture 1: sample.png, 640x480", "the first one is not kept"


def test_another_model(terminal: Terminal, sample_png: Path, iota_bundle: Path) -> None:
    terminal.ask(f"{sample_png} What number is printed?")
    assert terminal.ask(f"/model {iota_bundle}")[-1] == "model iota; the conversation goes on with it"
    assert "42" in terminal.ask("What number is printed?")
    terminal.ask("/model iota")


def test_completion(terminal: Terminal) -> None:
    terminal.type("/rel", TAB, "oad")
    terminal.wait("> /reload")
    terminal.type(CTRL_C)
    terminal.ready()
    terminal.type("/im", TAB)
    terminal.wait("> /image")
    terminal.type("mes", TAB)  # a longer path could break the line at any place
    terminal.wait("mes\\ été/")
    terminal.type(TAB)
    terminal.wait("image\\ 1.png")
    assert terminal.ask()[-1] == "picture 1: l'image 1.png, 640x480"


def test_a_narrow_terminal(terminal: Terminal, sample_png: Path) -> None:
    terminal.resize(20)
    try:
        lines = terminal.ask(f"/image {sample_png}")
        assert lines[-2:] == ["picture 1:", "sample.png, 640x480"]
        assert "2" in terminal.ask("How many shapes are there?")
        assert max(map(len, terminal.ask("/help"))) <= 20
    finally:
        terminal.resize(80)


def test_the_next_day(folder: Path, sample_png: Path) -> None:
    """History and the last conversation are there, and nobody else can read them."""
    state = folder / "next"
    with Terminal(CHAT, environment(state)) as terminal:
        terminal.wait(READY)
        terminal.ready()
        terminal.ask(f"{sample_png} What number is printed?")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    files = {path.name: path.stat().st_mode & 0o777 for path in (state / "pocketvlm").iterdir()}
    assert files == {"history.jsonl": 0o600, "last-conversation.json": 0o600}
    with Terminal([*CHAT, "--continue"], environment(state)) as terminal:
        assert "goes on after 1 question" in terminal.wait(READY)
        terminal.ready()
        assert terminal.ask(UP)[0].endswith("What number is printed?")
        assert "42" in terminal.ask("What number is printed?")
        terminal.type(CTRL_C, CTRL_C)
        assert terminal.end() == 130
    question = [*CHAT, "--continue", "How many shapes are there?", "-i", sample_png.name]
    asked = subprocess.run(
        question, cwd=sample_png.parent, env=environment(state), capture_output=True, timeout=60, check=True
    )
    assert asked.stdout == b"2\n"
    kept = json.loads((state / "pocketvlm" / "last-conversation.json").read_text())
    assert [message["role"] for message in kept["messages"]].count("user") == 4
    assert kept["messages"][-2]["content"][0]["path"] == str(sample_png), "it would not be there elsewhere"


def test_private(folder: Path) -> None:
    state = folder / "private"
    with Terminal([*CHAT, "--private", "--no-preview"], environment(state, NO_COLOR="1")) as terminal:
        assert "readable by you alone" not in " ".join(terminal.wait(READY).split())
        terminal.ready()
        terminal.ask("Hello")
        terminal.type("/bye", ENTER)
        assert terminal.end() == 0
        assert b"\x1b[3" not in terminal.written, "there are colours"
    assert not state.exists()


def test_names_of_files_do_not_reach_the_terminal_as_escapes(tmp_path: Path, sample_png: Path) -> None:
    title = "\x1b]0;title\x07\x9b31m"
    shutil.copy(sample_png, tmp_path / f"{title}.png")
    (tmp_path / f"{title}broken.png").write_text("text")
    for output in ([], ["-o", f"{tmp_path}/{title}out/"]):
        with Terminal([*CHAT[:-1], "read", str(tmp_path), *output], environment(tmp_path), seconds=60) as terminal:
            terminal.end()
            assert b"]0;title" in terminal.written and b"\x1b]0;" not in terminal.written
            assert "\x9b".encode() not in terminal.written


def test_a_dumb_terminal(folder: Path, sample_png: Path) -> None:
    with Terminal(CHAT, environment(folder / "dumb", TERM="dumb")) as terminal:
        assert "/help lists the commands" in terminal.ready()
        assert "42" in terminal.ask(f"{sample_png} What number is printed?")
        assert terminal.ask(f'"""How many{ENTER}shapes are there?"""')[-1].strip()
        terminal.ready()
        time.sleep(0.5)  # Python does not see a signal that comes between the prompt and the call that reads
        terminal.type(CTRL_C)
        terminal.wait("press Ctrl-C again to end")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
        assert b"\x1b" not in terminal.written
