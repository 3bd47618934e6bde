"""The parts of a conversation that need no model: what is drawn, what is kept, and what is copied."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyte
import pytest
from PIL import Image
from rich.console import Console

from pocketvlm.cli.conversation import preview
from pocketvlm.cli.conversation.answer import MarkdownAnswer
from pocketvlm.cli.conversation.clipboard import copy
from pocketvlm.cli.conversation.history import FileHistory
from pocketvlm.cli.conversation.last_conversation import LastConversation, keep_last, last_file, read_last
from pocketvlm.cli.conversation.live_lines import LiveLines
from pocketvlm.cli.conversation.plain_answer import PlainAnswer
from pocketvlm.cli.conversation.state import Conversation
from pocketvlm.errors import RequestError, SessionError

ANSWER = """# Shapes

A **red circle** and the number `42`, in a sentence that is so long that it must be wrapped at the end of a line, twice
and a second line with 2 * 3 = 6, snake_case_name and <b>HTML</b>.

1. one, which is also so long that it must be wrapped at the end of a line of this terminal, and with a
   second line
2. two
   - inner

| shape | where |
|---|---:|
| circle | left |
| a star with a long name | right |

```python
def area(radius):
    return 3 * radius**2
```

> quoted

日本語のテキストも折り返されます。とても長い行なので、端末の幅を超えてしまいますから、折り返しが必要です。
"""


class Screen:
    """What a terminal shows, and all lines that have left it at the top."""

    def __init__(self, columns: int, rows: int) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._screen.set_mode(pyte.modes.LNM)  # as a terminal's driver does: a new line begins at the left
        self._stream = pyte.Stream(self._screen)
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, force_terminal=True, color_system="truecolor", width=columns, height=rows
        )

    def lines(self) -> list[str]:
        self._stream.feed(self.file.getvalue())
        self.file.seek(0)
        self.file.truncate()
        above = ["".join(row[x].data for x in range(self._screen.columns)) for row in self._screen.history.top]
        lines = [line.rstrip() for line in [*above, *self._screen.display]]
        return "\n".join(lines).rstrip("\n").split("\n")


def drawn(text: str, columns: int, rows: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines of an answer that comes in so many pieces, each of which is drawn."""
    monkeypatch.setattr("pocketvlm.cli.conversation.answer._PAUSE", 0)
    monkeypatch.setattr("pocketvlm.cli.conversation.answer._SHARE", 0)
    screen = Screen(columns, rows)
    answer = MarkdownAnswer(screen.console)
    cuts = sorted(random.Random(pieces).sample(range(1, len(text)), pieces - 1))
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        answer.add(text[start:end])
        screen.lines()
    answer.end()
    return screen.lines()


@pytest.mark.parametrize("columns", [20, 80, 120])
@pytest.mark.parametrize("rows", [6, 50])
def test_an_answer_in_pieces_ends_as_one_at_once(columns: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block is longer than the screen."""
    whole = drawn(ANSWER, columns, 200, 1, monkeypatch)
    assert drawn(ANSWER, columns, rows, 60, monkeypatch) == whole
    assert max(len(line.encode("utf-16-le")) // 2 for line in whole) < columns
    text = " ".join(" ".join(whole).split())
    words = re.sub(r"[#`|>]|\*\*|\n\d\.|---:?|- |python", " ", ANSWER).split()
    squeezed = text.replace(" ", "")
    assert [word for word in words if word not in squeezed] == [] or columns == 20, "a part of the answer is missing"


@pytest.mark.parametrize("text", ["42.", "- 5", "1. e4", "a\nb", "    indented", "<td>x</td>", "[a]: b", "* * *"])
def test_no_answer_is_lost(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like Markdown but is the text of a picture."""
    lines = drawn(text, 80, 24, 1, monkeypatch)
    assert [line.strip() for line in lines] == [line.strip() for line in text.split("\n")]


def test_no_item_of_a_list_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn("The answer is:\n\n42.", 80, 24, 1, monkeypatch) == ["The answer is:", "", "42."]
    assert drawn("1. a\n2.\n3. c", 80, 24, 1, monkeypatch) == [" 1 a", " 2", " 3 c"]


def test_only_what_changes_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(80, 24)
    monkeypatch.setattr("pocketvlm.cli.conversation.answer._PAUSE", 0)
    monkeypatch.setattr("pocketvlm.cli.conversation.answer._SHARE", 0)
    answer = MarkdownAnswer(screen.console)
    for line in range(20):
        answer.add(f"line {line}\n")
    screen.file.truncate(0)
    answer.add("the last")
    written = screen.file.getvalue()
    assert "line 18" not in written and "the last" in written
    assert "\x1b[2K" not in written and "\x1b[2J" not in written, "something is erased before it is drawn"


def test_fewer_lines_than_before() -> None:
    screen = Screen(20, 10)
    live = LiveLines(screen.file.write, lambda: screen.console.size)
    for lines in (["a", "b", "c"], ["a", "d"], ["e"], ["e"], []):
        live.show(lines)
        assert screen.lines() == (lines or [""])
    live.keep(["kept"])
    live.show(["below"])
    assert screen.lines() == ["kept", "below"]


def test_lines_of_a_terminal_that_became_narrower() -> None:
    """A terminal wraps the lines that stand there, as this one is made to; they are drawn over."""
    screen = Screen(10, 10)
    sizes = [(20, 10), (10, 10)]
    live = LiveLines(screen.file.write, lambda: sizes[0])
    live.show(["x" * 15, "y"])
    screen.lines()
    sizes.pop(0)
    live.show(["z" * 5])
    assert screen.lines() == ["zzzzz"]


def test_control_characters_of_an_answer_do_not_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "a\x1b]52;c;AAAA\x07b\x1b[2Jc\x9b2Jd\re"
    assert drawn(hostile, 80, 24, 1, monkeypatch) == ["a]52;c;AAAAb[2Jc2Jde"]
    for clean, text in ((True, "a]52;c;AAAAb[2Jc2Jde\n"), (False, hostile + "\n")):
        file = io.StringIO()
        plain = PlainAnswer(file, clean=clean)
        plain.add(hostile)
        plain.end()
        assert file.getvalue() == text


# ---- what is kept


def test_history(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history.jsonl"
    history = FileHistory(path)
    for text in ("one", "two\nlines é", "x" * 20_000):
        history.store_string(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with path.open("ab") as file:
        file.write(b'"cut off\n\xff\n3\n')
    assert [*FileHistory(path).load_history_strings()] == ["two\nlines é", "one"]
    for n in range(2100):
        history.store_string(f"{n}")
    assert len([*FileHistory(path).load_history_strings()]) == 1000
    assert len(path.read_text().splitlines()) == 1000 and stat.S_IMODE(path.stat().st_mode) == 0o600
    FileHistory(path / "no folder").store_string("text")  # it is only not kept


def test_the_last_conversation(tmp_path: Path, sample_png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(SessionError, match="no conversation to go on with"):
        read_last()
    parts: list[Any] = [
        {"type": "image", "path": str(sample_png), "password": "secret"},
        {"type": "image", "image": b"bytes"},
        {"type": "image", "path": "/gone.png"},
        {"type": "text", "text": "What?"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    reports: list[str] = []
    assert keep_last(LastConversation(messages, 3, "m"), reports.append) and not reports
    assert "secret" not in last_file().read_text()
    last, missing = read_last()
    assert (missing, last.seen, last.model) == (["/gone.png"], 3, "m")
    first, second, third, _ = last.messages[0]["content"]
    assert first == {"type": "image", "path": str(sample_png)} and second["image"] == b"bytes"
    assert third == {"type": "text", "text": "[gone.png, a picture that is no longer there]"}
    for damaged in ("", "[]", "{}", '{"messages": [3]}', '{"messages": [{}]}', json.dumps({"messages": [], "x": 1})):
        last_file().write_text(damaged)
        with pytest.raises(SessionError, match="not a conversation"):
            read_last()


def test_where_the_last_conversation_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    reports: list[str] = []
    assert not keep_last(LastConversation([]), reports.append)
    assert [line.partition(":")[0] for line in reports] == ["the conversation cannot be kept for --continue"]


def test_settings() -> None:
    conversation = Conversation(None, "Be brief.", {"detail": "auto"}, max_tokens=None)  # type: ignore[arg-type]
    for name, text, value in [
        ("temperature", "0.5", 0.5),
        ("stop", "END", "END"),
        ("pages", "1-3", "1-3"),
        ("pages", "2", "2"),
        ("max_tokens", "default", None),
        ("detail", "high", "high"),
    ]:
        conversation.set(name, text)
        shown = conversation.settings()[name]
        assert str(shown) == str(value), name
    for name, text, words in [
        ("temperature", "3", "temperature: must be at most 2"),
        ("detail", "ultra", "detail"),
        ("seed", "x", "seed: must be an integer"),
        ("colour", "red", "there is no setting colour; known: temperature"),
    ]:
        with pytest.raises(RequestError, match=words):
            conversation.set(name, text)
    conversation.system = None
    assert conversation.messages == []


# ---- a small picture


PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 4, (48, 96, 3), np.uint8) * 85)


def test_kitty_and_iterm_send_the_picture() -> None:
    shown = preview.kitty(PICTURE, (10, 3))
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", shown)
    assert shown == "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) + "\n"
    assert chunks[0][0] == f"a=T,f=100,q=2,c=10,r=3,m={int(len(chunks) > 1)}" and chunks[-1][0].endswith("m=0")
    assert max(len(data) for _, data in chunks) <= 4096
    data = re.fullmatch(
        r"\x1b\]1337;File=inline=1;width=10;height=3;preserveAspectRatio=0:(.*)\x07\n", preview.iterm(PICTURE, (10, 3))
    )
    assert data
    for text in ("".join(data for _, data in chunks), data[1]):
        picture = Image.open(io.BytesIO(base64.b64decode(text)))
        assert np.array_equal(np.asarray(picture), np.asarray(PICTURE))


def test_sixels_are_the_picture() -> None:
    """Decoded as DEC's manual says; the palette has the 64 colours, in hundredths."""
    size = (10 * preview._CELL[0], 3 * preview._CELL[1])
    picture = PICTURE.resize((10, 6), Image.Resampling.NEAREST).resize(size, Image.Resampling.NEAREST)
    body = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\\n', preview.sixel(picture, (10, 3)))
    assert body and (int(body[1]), int(body[2])) == size
    pixels = np.zeros((size[1] + 6, size[0], 3), np.uint8)
    colours: dict[int, list[int]] = {}
    x = y = colour = 0
    for token in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|!\d+.|[-$]|[?-~]", body[3]):
        if token[0] == "#":
            colour, *rgb = [int(number) for number in token[1:].split(";")]
            if rgb:
                colours[colour] = [round(value * 2.55) for value in rgb[1:]]
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            count = int(token[1:-1]) if token[0] == "!" else 1
            for bit in range(6):
                if ord(token[-1]) - 63 >> bit & 1:
                    pixels[y + bit, x : x + count] = colours[colour]
            x += count
    assert np.abs(pixels[: size[1]].astype(int) - np.asarray(picture)).max() <= 2


def test_half_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)
    picture = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    shown = preview.preview(picture.resize((80, 160), Image.Resampling.NEAREST), console)
    assert shown is not None
    rows = shown.splitlines()
    assert len(rows) == 12 and "38;2;255;0;0;48;2;255;0;0" in rows[0] and "38;2;0;0;255;48;2;0;0;255" in rows[-1]
    plain = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=True, width=80)
    assert preview.preview(picture, plain) is None


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "WezTerm"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, None),
    ],
)
def test_which_terminal_draws_how(environment: dict[str, str], name: str | None) -> None:
    protocol = preview._protocol(environment)
    assert (protocol and protocol.__name__) == name


@pytest.mark.parametrize(
    ("size", "cells"), [((640, 480), (32, 12)), ((192, 192), (24, 12)), ((9, 900), (1, 12)), ((900, 9), (48, 1))]
)
def test_cells(size: tuple[int, int], cells: tuple[int, int]) -> None:
    assert preview.cells_of(size, (48, 12)) == cells


# ---- the clipboard


def test_a_tool_gets_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "wl-copy"
    tool.write_text(f'#!/bin/sh\ncat > "{tmp_path}/copied"\n')
    tool.chmod(0o755)
    for name in ("TMUX", "SSH_TTY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert copy("text é\n", None) == "wl-copy"
    assert (tmp_path / "copied").read_text() == "text é\n"
    tool.write_text("#!/bin/sh\nexit 1\n")
    terminal = io.StringIO()
    assert copy("é", terminal) == "the terminal" and terminal.getvalue() == "\x1b]52;c;w6k=\x07"
    assert copy("é", None) is None


def test_the_clipboard_of_windows_gets_utf_16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "clip"
    tool.write_text(f'#!/bin/sh\nexec cat > "{tmp_path}/copied"\n')
    tool.chmod(0o755)
    for name in ("TMUX", "SSH_TTY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("pocketvlm.cli.conversation.clipboard.sys.platform", "win32")
    monkeypatch.setattr("pocketvlm.cli.conversation.clipboard.shutil.which", lambda name: name)
    assert copy("é 日本", None) == "clip"
    assert (tmp_path / "copied").read_bytes() == "é 日本".encode("utf-16")
