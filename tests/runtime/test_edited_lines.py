"""What is typed in a conversation, with keys from a pipe and the screen read from a terminal of this process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import pytest

if sys.platform == "win32":
    pytest.skip("needs a terminal of Unix", allow_module_level=True)

import pyte
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input

from pocketvlm.cli.conversation.edited_lines import EditedLines


def typed(*keys: str, history: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return what is read, and all that was written while it was typed."""
    leader, follower = os.openpty()
    try:
        with (
            create_pipe_input() as pipe,
            create_app_session(input=pipe),
            os.fdopen(follower, "w", encoding="utf-8") as output,
        ):
            shown: list[str] = []
            lines = EditedLines(
                output, lambda _: (), InMemoryHistory(history), "Ask", shown=lambda: shown.append("shown")
            )
            pipe.send_text("".join(keys))
            text = lines.read()
            assert shown == ["shown"]
        return text, _rest(leader).decode()
    finally:
        os.close(leader)


def _rest(leader: int) -> bytes:
    """Read to the end, which Linux reports as an error. A single read returns a part."""
    data = b""
    with suppress(OSError):
        while piece := os.read(leader, 1 << 16):
            data += piece
    return data


def screen(written: str) -> list[str]:
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(written)
    return [line.rstrip() for line in screen.display if line.strip()]


def test_a_line_after_the_prompt() -> None:
    text, written = typed("What is this?", "\r")
    assert text == "What is this?"
    assert screen(written) == ["> What is this?"]


def test_lines_stand_under_each_other() -> None:
    text, written = typed("What is this,", "\x1b\r", "and that?", "\r")
    assert text == "What is this,\nand that?"
    assert screen(written) == ["> What is this,", "  and that?"]


def test_a_long_line_is_wrapped() -> None:
    text, written = typed("a" * 100, "\r")
    assert text == "a" * 100
    assert screen(written) == ["> " + "a" * 78, "  " + "a" * 22]


def test_search_in_the_history() -> None:
    text, _ = typed("\x12", "ber", "\r", "\r", history=("Which number?", "What is this?"))
    assert text == "Which number?"


def test_a_repeated_key() -> None:
    assert typed("\x1b4", "a", "\r")[0] == "aaaa"
