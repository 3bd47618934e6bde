"""What errors quote of files and requests: short, on one line, and without control characters."""

from __future__ import annotations

import pytest

from pocketvlm import errors
from pocketvlm.errors import EngineError, FileError, ModelError, RequestError, quoted, shortened
from pocketvlm.server.http_errors import http_error_of

LONG = "a" * 5000 + "z"


@pytest.mark.parametrize(
    "value", [LONG, "\x1b[31m" * 500, ["a" * 900] * 900, {LONG: LONG}, 10**1000, "\udcff" * 300, "ä" * 300]
)
def test_quotes_are_short_and_printable(value: object) -> None:
    for text in (quoted(value), shortened(value)):
        assert len(text) <= 200 and text.isprintable()


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
        assert len(str(error)) <= 4100 and str(error).isprintable()
    assert str(EngineError("one\ntwo\r\nthree")) == "one\ntwo\nthree"
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, errors.PocketVLMError) for kind in kinds)


def test_a_fault_of_the_model_is_told_without_its_path() -> None:
    error = http_error_of(ModelError("the chat template fails", "/home/me/model.gguf"))
    assert (error.status, error.code, error.message) == (500, "model_error", "the chat template fails")
