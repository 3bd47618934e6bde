"""Documents that cannot be shown: one line that names the file and the page, in Python and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_documents import BadDocument, bad_documents
from integration.test_cli import refused
from pocketvlm import VLM
from pocketvlm.errors import ImageError

BAD = {bad.name: bad for bad in bad_documents()}
QUESTION = "What colour is the square?"


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load(context_size=1024, threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_in_python(vlm: VLM, bad: BadDocument, tmp_path: Path) -> None:
    path = tmp_path / bad.name
    path.write_bytes(bad.data)
    with pytest.raises(ImageError) as caught:
        vlm.chat([{"role": "user", "content": [{"type": "file", "path": path, **bad.options}, QUESTION]}])
    assert caught.value.code == bad.code
    assert caught.value.param == "messages.0.content.0.path"
    assert f"{path}: {bad.reason}" in str(caught.value) and "\n" not in str(caught.value)
    assert vlm.statistics().prompt_tokens == 0  # nothing was evaluated


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_on_the_command_line(bad: BadDocument, tmp_path: Path) -> None:
    path = tmp_path / bad.name
    path.write_bytes(bad.data)
    options = [text for name, value in bad.options.items() for text in (f"--{name}", value)]
    [line] = refused("chat", QUESTION, "-i", path, *options).splitlines()
    assert line.startswith("error: ") and f"{bad.name}: {bad.reason}" in line, line
