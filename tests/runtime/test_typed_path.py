"""Paths as people type, paste and drop them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.cli.typed_path import typed_path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home and working directory, with some pictures."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (
        "my photo.png",
        "x.png",
        "a'b.png",
        "'odd'.png",
        "b\\c.png",
        "Screenshot 5.01\u202fPM.png",
        "cafe\u0301.png",
    ):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("my photo.png", "my photo.png"),
        ('"my photo.png"', "my photo.png"),
        ("'my photo.png'", "my photo.png"),
        ("my\\ photo.png", "my photo.png"),
        ("~/x.png", "~/x.png"),
        ("'~/my photo.png'", "~/my photo.png"),
        ("a'b.png", "a'b.png"),
        ("'odd'.png", "'odd'.png"),  # as given comes first
        ("b\\c.png", "b\\c.png"),
        ("Screenshot 5.01 PM.png", "Screenshot 5.01\u202fPM.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("none.png", "none.png"),
        ('"none here.png"', "none here.png"),
        ("", ""),
        ("\0", "\0"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_what_a_text_means(typed: str, name: str, folder: Path) -> None:
    assert typed_path(typed) == name.replace("~", str(folder))


def test_two_that_are_alike(folder: Path) -> None:
    (folder / "Screenshot 5.01\u00a0PM.png").touch()
    assert typed_path("Screenshot 5.01 PM.png") == "Screenshot 5.01 PM.png", "it could be either"


def test_a_file_to_be_written(folder: Path) -> None:
    """It must not replace one with another name."""
    assert typed_path("'Screenshot 5.01 PM.png'", alike=False) == "Screenshot 5.01 PM.png"
    assert typed_path("~/new.session", alike=False) == str(folder / "new.session")
