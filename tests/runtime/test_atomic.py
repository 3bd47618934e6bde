"""Files that appear when they are complete."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pocketvlm.batch.requests import Defaults, read_batch
from pocketvlm.batch.results import Results
from pocketvlm.errors import RequestError
from pocketvlm.system.atomic import new_file

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """A file that was changed a moment ago may have a writer; those of other names are not looked at."""
    names = (".x.01234567.partial", ".x.89abcdef.partial", ".y.01234567.partial", ".x.notes.partial")
    for name in names:
        (tmp_path / name).touch()
    for name in (names[0], names[2], names[3]):
        os.utime(tmp_path / name, (0, 0))
    with new_file(tmp_path / "x") as file:
        file.write(b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"x", *names[1:]}


def test_no_file_takes_the_place_of_a_device_or_pipe(tmp_path: Path) -> None:
    """As root, `/save /dev/null` would leave everybody without it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"), new_file(pipe):
        pass
    with pytest.raises(RequestError, match="not a regular file"):
        Results(pipe, {})
    with pytest.raises(RequestError, match="not a regular file"):
        read_batch([pipe], Defaults())
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
