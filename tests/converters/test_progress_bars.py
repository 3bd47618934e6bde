"""Bars are for terminals: a file or a pipe gets none."""

from __future__ import annotations

import sys

import pytest

from pocketvlm_converters.cli.progress import bars


def show() -> None:
    with bars() as progress:
        progress("download", 0, 10)
        progress("download", 10, 10)


def test_a_file_gets_no_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    show()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    show()
    assert "\x1b" not in "".join(capsys.readouterr())
    monkeypatch.setenv("TERM", "xterm")
    show()
    assert "download" in capsys.readouterr().err
