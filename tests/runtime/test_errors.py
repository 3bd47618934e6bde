"""Messages are one line that a terminal can show, and quote little of what a file or a request says."""

from __future__ import annotations

import pytest

from pocketvlm import errors
from pocketvlm.errors import (
    EngineBusyError,
    EngineError,
    FileError,
    ImageNotFoundError,
    ModelError,
    OutputError,
    PocketVLMError,
    RequestError,
    printable,
    quoted,
    shortened,
)
from pocketvlm.server.http_errors import http_error_of

LONG = "a" * 5000 + "z"


@pytest.mark.parametrize(
    "value", [LONG, "\x1b[31m" * 500, ["a" * 900] * 900, {LONG: LONG}, 10**1000, "\udcff" * 300, "ä" * 300]
)
def test_quotes_are_short_and_printable(value: object) -> None:
    for text in (quoted(value), shortened(value)):
        assert len(text) <= 200 and text.isprintable()


def test_texts_for_a_terminal_keep_lines_and_tabs() -> None:
    assert printable("é\x1b]0;x\x07\x9b1m\r\x7f\ta\nb") == "é]0;x1m\ta\nb"
    assert printable("a\x85b", " ") == "a b"


def test_what_is_cut_is_in_the_middle() -> None:
    assert shortened("short äö") == "short äö" and quoted("it's\n") == '"it\'s\\n"'
    text = shortened(f"begin {LONG}")
    assert text.startswith("begin aaa") and "…" in text and text.endswith("az")
    assert shortened("a" * 200) == "a" * 200
    assert shortened("\x1b[2J\n") == "\\x1b[2J\\n"


def test_fields_and_paths_of_errors_are_cut() -> None:
    error = RequestError("is wrong", f"tools.0.{LONG}\n")
    assert len(str(error)) < 220 and str(error).endswith("is wrong") and str(error).startswith("tools.0.aaa")
    assert error.param == f"tools.0.{LONG}\n"
    assert len(str(FileError("is wrong", LONG))) < 420


def test_no_message_is_without_limits() -> None:
    """A place that forgets to shorten what it quotes."""
    for error in (EngineError(LONG), RequestError(f"{LONG}\x1b[2J", "field"), FileError(LONG, "file")):
        assert len(str(error)) <= 2100 and str(error).isprintable()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, errors.PocketVLMError) for kind in kinds)


def test_a_fault_of_the_model_is_told_without_its_path(caplog: pytest.LogCaptureFixture) -> None:
    """The server's log has the path, but no text, which may quote a client's."""
    error = http_error_of(ModelError("the chat template fails", "/home/me/model.gguf"))
    assert (error.status, error.code, error.message) == (500, "model_error", "the chat template fails")
    assert caplog.messages == ["ModelError: /home/me/model.gguf"]


def test_a_shortage_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = http_error_of(RuntimeError("can't start new thread"))
    assert (error.status, error.code) == (503, "system_limit")
    assert caplog.messages == [error.message]


def test_a_busy_engine_can_be_asked_again() -> None:
    error = http_error_of(EngineBusyError("try again"))
    assert (error.status, error.code, error.message) == (503, "engine_busy", "try again")


@pytest.mark.parametrize(
    "error",
    [
        PocketVLMError("a\nb"),
        EngineError("a\r\nb\x1b[2J"),
        RequestError("a\u2028b", "field\x00"),
        ImageNotFoundError("\udcff", "image\n"),
        OutputError("\u202eb", "folder\nname"),
        OutputError("x" * 100_000, "y" * 100_000),
    ],
)
def test_one_line(error: PocketVLMError) -> None:
    for text in (str(error), getattr(error, "message", "")):
        assert len(text.splitlines()) <= 1
        assert len(text) < 2100
        assert text.isprintable()
        text.encode()


def test_both_ends_of_a_long_message_stay() -> None:
    assert str(RequestError(f"begin{'x' * 9000}end", "seed")).startswith("seed: begin")
    assert str(RequestError(f"begin{'x' * 9000}end", "seed")).endswith("end")


def test_text_stays_as_it_is() -> None:
    text = "„Größe“ — 图片 is 1:2, 🙂\u200d"
    assert str(RequestError(text)) == text
